"""A real S3 server (SeaweedFS) and packed digits, for the tests of this folder."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest
from datasets.storage import transfer
from datasets.storage.store import Store, StoreConfig
from orchestration.stack import services
from orchestration.stack.services import Secrets
from tests.waiting import wait_for

SECRETS = Secrets(access_key="testkey", secret_key="testsecret", ray_token="", mlflow_token="")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of the server run in one process, so that one server is started."""
    for item in items:
        uses_server = {"servers", "place"} & set(getattr(item, "fixturenames", ()))
        if uses_server and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("s3"))


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between failed requests, through the same code as long ones."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE_S", 0.02)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(S3 endpoint, web address) of a SeaweedFS for all tests; its filer serves plain HTTP under
    /buckets."""
    folder = tmp_path_factory.mktemp("s3")
    port = services.free_ports(1)[0]
    command = services.s3_command(folder, port, SECRETS)
    os.environ.update(services.s3_environment(SECRETS))
    # Without the certificates that the stack's own asks for: its filer serves plain HTTP.
    variables = {k: v for k, v in command.environment.items() if not k.startswith("WEED_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command.arguments, env={**os.environ, **variables}, stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: services.is_ready("s3", url), 60, (folder / "log").read_text)
        filer = next(a for a in command.arguments if a.startswith("-filer.port="))
        yield url, f"http://127.0.0.1:{filer.partition('=')[2]}/buckets"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def s3_url(servers: tuple[str, str]) -> str:
    return servers[0]


@pytest.fixture(scope="session")
def web_url(servers: tuple[str, str]) -> str:
    """The buckets, by plain HTTP GET."""
    return servers[1]


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in services.s3_environment(SECRETS).items():
        monkeypatch.setenv(name, value)
    return Store(StoreConfig(endpoint_url=s3_url, region="us-east-1", addressing="path"))


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """The digits' training split on disk; its last shard is smaller."""
    store = Store()
    url = tmp_path_factory.mktemp("digits").as_uri()
    samples, classes = digits("train")
    return store, pack(samples, store, url, classes=classes, samples_per_shard=100)


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Store, str]:
    return Store(), tmp_path.as_uri()
