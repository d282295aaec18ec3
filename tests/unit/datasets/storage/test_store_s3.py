"""The store against a real S3 server and on disk, and its error messages."""

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from datasets.errors import DataError, StoreError
from datasets.storage.store import Store, StoreConfig

CONTENT = bytes(range(256)) * 20_000  # 5.1 MB


def store_at(endpoint_url: str) -> Store:
    return Store(StoreConfig(endpoint_url=endpoint_url, region="us-east-1", addressing="path"))


@pytest.fixture(params=["s3", "disk"])
def place(request: pytest.FixtureRequest) -> tuple[Store, str]:
    """(store, prefix) of a real S3 bucket, then of a folder."""
    if request.param == "s3":
        return request.getfixturevalue("s3"), f"s3://data/{request.node.name}"
    disk: tuple[Store, str] = request.getfixturevalue("disk")
    return disk


def test_write_read_range_list_delete(place: tuple[Store, str]) -> None:
    store, prefix = place
    store.write(f"{prefix}/a/one.bin", CONTENT)
    store.write(f"{prefix}/a/two words.bin", b"2")
    store.write(f"{prefix}/b.bin", b"3")
    assert store.read(f"{prefix}/a/one.bin") == CONTENT
    assert store.read_range(f"{prefix}/a/one.bin", 1000, 3_000_000) == CONTENT[1000:3_001_000]
    assert bytes(store.read_range(f"{prefix}/a/one.bin", 5, 0)) == b""
    assert store.exists(f"{prefix}/a/one.bin")
    assert not store.exists(f"{prefix}/a/one")
    entries = store.list(f"{prefix}/a/")
    assert [entry.size_bytes for entry in entries] == [len(CONTENT), 1]
    assert len(store.list(f"{prefix}/")) == 3
    assert store.read(entries[1].url) == b"2"
    store.write(f"{prefix}/b.bin", b"33")  # replaced whole
    assert store.read(f"{prefix}/b.bin") == b"33"
    store.delete(f"{prefix}/b.bin")
    store.delete(f"{prefix}/b.bin")
    assert not store.exists(f"{prefix}/b.bin")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize("folder", ["plain", "two words", "grün", "100%41"])
def test_listed_urls_begin_as_the_prefix_is_written(tmp_path: Path, form: str, folder: str) -> None:
    """A caller finds what it wrote, whether it quotes its URLs or not."""
    if "%" in folder and "file" in form:
        folder = quote(folder)
    store, prefix = Store(), form.format(tmp_path / folder)
    names = ["a-1/x.bin", "a-2/y.bin", "b.bin"]
    for name in names:
        store.write(f"{prefix}/{name}", b"content")
    assert [entry.url for entry in store.list(f"{prefix}/")] == [f"{prefix}/{n}" for n in names]
    assert [entry.url for entry in store.list(prefix)] == [f"{prefix}/{n}" for n in names]
    assert [entry.url for entry in store.list(f"{prefix}/a-")] == [
        f"{prefix}/{n}" for n in names[:2]
    ]
    assert [entry.url for entry in store.list(f"{prefix}/b.bin")] == [f"{prefix}/b.bin"]
    assert [entry.size_bytes for entry in store.list(f"{prefix}/b")] == [7]
    assert store.list(f"{prefix}/c") == store.list(f"{prefix}/none/") == []


def test_missing_and_short_objects_are_reported(place: tuple[Store, str]) -> None:
    store, prefix = place
    store.write(f"{prefix}/short.bin", b"0123456789")
    with pytest.raises(DataError, match="got no such"):
        store.read(f"{prefix}/nothing.bin")
    with pytest.raises(DataError, match="its index says"):
        store.read_range(f"{prefix}/short.bin", 5, 100)
    with pytest.raises(DataError, match="its index says"):
        store.read_range(f"{prefix}/short.bin", 500, 100)


def test_list_goes_over_pages(s3: Store) -> None:
    """boto/boto3#1927: a list has at most 1,000 keys, whatever is asked for."""
    for number in range(1005):
        s3.write(f"s3://data/pages/{number:05d}", b"")
    assert len(s3.list("s3://data/pages/")) == 1005


def test_replaced_object_is_noticed(s3: Store) -> None:
    url = "s3://data/etag/shard.tar"
    s3.write(url, b"first" * 100)
    etag = s3.list(url)[0].etag
    assert bytes(s3.read_range(url, 0, 10, etag)) == b"firstfirst"
    s3.write(url, b"other" * 100)
    with pytest.raises(DataError, match="another ETag"):
        s3.read_range(url, 0, 10, etag)


def test_wrong_credentials_missing_bucket_no_server(
    s3: Store, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="got no bucket nobucket"):
        s3.exists("s3://nobucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY") as caught:
        store_at(s3_url).read("s3://data/x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreError, match=r"storage\.endpoint_url"):
        store_at("http://127.0.0.1:9").read("s3://data/x")


def test_missing_credentials_are_reported(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StoreError, match=r"storage\.anonymous=true"):
        store_at(s3_url).read("s3://data/x")


def test_store_travels_without_connection_or_secret(s3: Store) -> None:
    s3.write("s3://data/travel", b"x")
    copy = pickle.loads(pickle.dumps(s3))  # noqa: S301 - our own bytes
    assert copy.read("s3://data/travel") == b"x"
    assert b"testsecret" not in pickle.dumps(s3)
    assert "testsecret" not in repr(s3) + repr(vars(s3))


@contextmanager
def cutting_proxy(target: str, limits: list[int]) -> Iterator[str]:
    """A TCP proxy in front of the real server. It cuts the i-th connection after limits[i] bytes of
    the response; later ones pass."""
    host, port = target.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    done = threading.Event()
    remaining = list(limits)

    def pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        sent = 0
        with suppress(OSError):
            while chunk := source.recv(65536):
                if limit is not None:
                    chunk = chunk[: limit - sent]
                sink.sendall(chunk)
                sent += len(chunk)
                if limit is not None and sent >= limit:
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while not done.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            upstream = socket.create_connection((host, int(port)), timeout=10)
            limit = remaining.pop(0) if remaining else None
            for pair in ((client, upstream, None), (upstream, client, limit)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        server.join(5)
        listener.close()


def test_broken_body_is_continued_from_the_byte_reached(s3: Store, s3_url: str) -> None:
    """webdataset/webdataset#432: a shard whose rest had not arrived was read as a whole one."""
    s3.write("s3://data/cut/shard.tar", CONTENT)
    with cutting_proxy(s3_url, [1_500_000, 2_000_000]) as proxy:
        assert store_at(proxy).read("s3://data/cut/shard.tar") == CONTENT
    with cutting_proxy(s3_url, [900_000]) as proxy:
        part = store_at(proxy).read_range("s3://data/cut/shard.tar", 77, 4_000_000)
        assert part == CONTENT[77:4_000_077]


@pytest.mark.usefixtures("short_pauses")
def test_body_that_never_comes_whole_is_an_error(s3: Store, s3_url: str) -> None:
    s3.write("s3://data/cut/always.tar", CONTENT)
    with (
        cutting_proxy(s3_url, [300] * 400) as proxy,
        pytest.raises(StoreError, match="a body must arrive whole"),
    ):
        store_at(proxy).read("s3://data/cut/always.tar")


@pytest.mark.usefixtures("short_pauses")
def test_secrets_in_a_url_are_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        Store().read("http://user:hunter2@127.0.0.1:9/x.tar?signature=hunter3")
    assert "http://127.0.0.1:9/x.tar" in str(caught.value)
    assert "hunter" not in str(caught.value)
