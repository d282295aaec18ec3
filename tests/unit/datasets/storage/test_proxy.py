"""Behind a company's proxy: remote stores are asked through it, this machine never.

The proxy is a real one on loopback; a name that only it resolves leads to the real S3 server.
"""

import base64
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

import pytest

from datasets.errors import StoreError
from datasets.storage.proxy import bypass_loopback, proxy_of, through_proxy
from datasets.storage.store import Store, StoreConfig
from tests.unit.datasets.conftest import SECRETS

PASSWORD = "hunter2-of-the-proxy"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass
class Proxy:
    """asked: URLs of its requests. login: it asks for."""

    url: str = ""
    login: str | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, "")  # so that it is restored, whoever sets it
            monkeypatch.delenv(spelling)


@pytest.fixture
def proxy(servers: tuple[str, str]) -> Iterator[Proxy]:
    """Passes requests for any host on to the port of this machine that they name."""
    made = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made.asked.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            given = self.headers.get("Proxy-Authorization", "")
            if made.login and given != f"Basic {base64.b64encode(made.login.encode()).decode()}":
                self.send_response(407)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            url = urlsplit(self.path)
            server = http.client.HTTPConnection("127.0.0.1", url.port or 80, timeout=30)
            path = f"{url.path}?{url.query}" if url.query else url.path
            server.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if not name.lower().startswith("proxy-"):
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            server.close()

        do_PUT = do_HEAD = do_DELETE = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()


def remote(s3_url: str) -> Store:
    """The S3 server under a name that only the proxy knows."""
    url = f"http://store.invalid:{urlsplit(s3_url).port}"
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


def test_a_remote_store_is_asked_through_the_proxy(
    s3: Store, s3_url: str, web_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.login = f"someone:{PASSWORD}"
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", f"://{proxy.login}@"))
    bypass_loopback()
    store = remote(s3_url)
    store.write("s3://data/behind/a-proxy", b"content")
    assert store.read("s3://data/behind/a-proxy") == b"content"
    asked = len(proxy.asked)
    assert asked >= 2
    port = urlsplit(web_url).port
    page = f"http://web.invalid:{port}/buckets/data/behind/a-proxy"
    assert Store().read(page) == b"content"
    assert proxy.asked[asked:] == [page]
    # This machine's own services are asked directly.
    assert s3.read("s3://data/behind/a-proxy") == b"content"
    assert Store().read(f"{web_url}/data/behind/a-proxy") == b"content"
    assert len(proxy.asked) == asked + 1


def test_a_proxy_that_refuses_or_is_away_is_named_without_its_password(
    s3: Store, s3_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.login = f"someone:{PASSWORD}"
    monkeypatch.setenv("http_proxy", proxy.url.replace("://", "://someone:wrong@"))
    with pytest.raises(StoreError, match=r"407.*asks for a login") as caught:
        remote(s3_url).read("s3://data/behind/a-proxy")
    assert f"through the proxy {proxy.url};" in str(caught.value)
    monkeypatch.setenv("http_proxy", f"http://someone:{PASSWORD}@127.0.0.1:9")
    for url in ("s3://data/key", "http://web.invalid/key"):
        with pytest.raises(
            StoreError, match=r"through the proxy http://127\.0\.0\.1:9 .*NO_PROXY"
        ) as caught:
            remote(s3_url).read(url)
        assert PASSWORD not in str(caught.value)
    monkeypatch.setenv("no_proxy", "store.invalid")
    with pytest.raises(StoreError, match=r"no answer.*Check storage\.endpoint_url") as caught:
        remote(s3_url).read("s3://data/key")
    assert "proxy" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": ".corp, 10.0.0.1"}, ".corp,10.0.0.1,127.0.0.1,localhost,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b,a"}, "a,b,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_loopback_joins_no_proxy(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bypass_loopback()
    bypass_loopback()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected


def test_which_proxy_a_url_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.corp:3128")
    monkeypatch.setenv("NO_PROXY", ".corp,10.1.2.3")
    assert proxy_of("https://s3.example/bucket") == "http://proxy.corp:3128"
    for direct in (
        "http://s3.example/", "https://store.corp:8333", "https://10.1.2.3/",
        "https://127.0.0.1:1/", "https://localhost/", "https://[::1]:80/",
    ):  # fmt: skip
        assert proxy_of(direct) is None, direct
    assert through_proxy("https://s3.example") == " through the proxy http://proxy.corp:3128"
    monkeypatch.setenv("ALL_PROXY", "http://all.corp")
    assert proxy_of("http://s3.example/") == "http://all.corp"


def test_a_command_asks_nothing_of_this_machine_through_a_proxy(servers: tuple[str, str]) -> None:
    """The commands set NO_PROXY themselves, for all that they start."""
    code = (
        "import os, sys; from orchestration.cli import main; sys.argv = ['rayception', '--help']\n"
        "import orchestration.cli.app as app\n"
        "app.os._exit = lambda code: print(os.environ['NO_PROXY'], os.environ['no_proxy'])\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == " ".join(["127.0.0.1,localhost,::1"] * 2)
    assert SECRETS.secret_key not in done.stdout
