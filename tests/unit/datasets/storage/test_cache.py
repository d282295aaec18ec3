"""The disk cache: fewer requests, the same bytes, its limit; damage, kills and failing disks."""

import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datasets.errors import StoreError
from datasets.storage import cache as cache_module
from datasets.storage.cache import DiskCache
from datasets.storage.s3 import S3
from datasets.storage.store import Store

PART = 1000
OBJECTS = {f"o{i}": random.Random(i).randbytes(3500 + 137 * i) for i in range(6)}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PART_BYTES", PART)
    monkeypatch.setattr(cache_module, "PAGE_BYTES", 256)


class Source:
    """The remote objects; records what is fetched."""

    def __init__(self) -> None:
        self.fetched: list[tuple[str, int]] = []

    def read(self, cache: DiskCache, name: str, start: int, length: int) -> bytes:
        content = OBJECTS[name]
        view = memoryview(bytearray(length))

        def fetch(part: memoryview, first: int) -> None:
            self.fetched.append((name, first))
            part[:] = content[first : first + len(part)]

        cache.read_into(name, len(content), start, view, fetch)
        return bytes(view)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def test_any_range_comes_whole_and_each_part_is_fetched_once(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, 10**6), Source()
    rng = random.Random(0)
    for _ in range(400):
        name = rng.choice(list(OBJECTS))
        start = rng.randrange(len(OBJECTS[name]))
        length = rng.randint(1, len(OBJECTS[name]) - start)
        assert source.read(cache, name, start, length) == OBJECTS[name][start : start + length]
    assert len(source.fetched) == len(set(source.fetched)) <= 6 * 5


def test_the_limit_holds_and_the_most_recently_used_stays(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, 8 * PART), Source()
    for name in [*OBJECTS, *OBJECTS]:
        source.read(cache, "o0", 0, 900)  # used again and again
        assert source.read(cache, name, 0, len(OBJECTS[name])) == OBJECTS[name]
        assert stored(tmp_path) <= 8 * PART
    assert source.fetched.count(("o0", 0)) == 1
    assert len(source.fetched) > 30


def test_corrupt_cut_and_foreign_files_are_fetched_again(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, 10**6), Source()
    source.read(cache, "o1", 0, 3000)
    paths = sorted(tmp_path.glob("??/*"))
    assert len(paths) == 3
    for change in (b"", b"x" * 5, None):
        for path in paths:
            content = bytearray(path.read_bytes())
            if change is None:
                content[random.Random(3).randrange(PART)] ^= 1
            path.write_bytes(content if change is None else change)
        fetched = len(source.fetched)
        assert source.read(cache, "o1", 0, 3000) == OBJECTS["o1"][:3000]
        assert len(source.fetched) == fetched + 3
        assert source.read(cache, "o1", 0, 3000) == OBJECTS["o1"][:3000]
        assert len(source.fetched) == fetched + 3


def test_a_lost_total_is_counted_again(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, 8 * PART), Source()
    for name in OBJECTS:
        source.read(cache, name, 0, 3000)
        (tmp_path / "total").write_bytes(b"odd")
    assert stored(tmp_path) <= 8 * PART


def hammer(folder: Path, seed: int) -> None:
    cache_module.PART_BYTES, cache_module.PAGE_BYTES = PART, 256
    cache, source, rng = DiskCache(folder, 9 * PART), Source(), random.Random(seed)
    while True:
        name = rng.choice(list(OBJECTS))
        start = rng.randrange(len(OBJECTS[name]))
        length = rng.randint(1, len(OBJECTS[name]) - start)
        if source.read(cache, name, start, length) != OBJECTS[name][start : start + length]:
            (folder / "wrong").touch()


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_processes_share_it_and_kills_leave_it_whole(tmp_path: Path, times: int) -> None:
    """Three processes, killed at random moments: never a wrong byte, and at the end no more than
    the limit."""
    context = multiprocessing.get_context("fork")
    rng = random.Random(1)
    for round_ in range(times):
        workers = [
            context.Process(target=hammer, args=(tmp_path, 3 * round_ + i)) for i in (0, 1, 2)
        ]
        for worker in workers:
            worker.start()
        time.sleep(rng.uniform(0.02, 0.15))
        for worker in workers:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)
    assert not (tmp_path / "wrong").exists()
    cache, source = DiskCache(tmp_path, 9 * PART), Source()
    for name in [*OBJECTS, *OBJECTS]:
        assert source.read(cache, name, 0, len(OBJECTS[name])) == OBJECTS[name]
    parts = [path for path in tmp_path.glob("??/*") if not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in parts) <= 9 * PART
    # Temporary files of killed writers are removed after an hour, by the next eviction.
    for path in tmp_path.glob("??/.*"):
        os.utime(path, (1, 1))
    for name in OBJECTS:
        source.read(cache, name, 0, len(OBJECTS[name]))
    assert not list(tmp_path.glob("??/.*"))


def test_threads_share_it(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, 6 * PART), Source()
    with ThreadPoolExecutor(8) as pool:
        names = list(OBJECTS) * 40
        contents = list(pool.map(lambda name: source.read(cache, name, 100, 3000), names))
    assert contents == [OBJECTS[name][100:3100] for name in names]


def test_a_failing_disk_costs_only_speed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache, source = DiskCache(tmp_path / "file" / "below", 10**6), Source()
    for _ in range(2):
        assert source.read(cache, "o1", 10, 2000) == OBJECTS["o1"][10:2010]
    with pytest.raises(StoreError, match=r"data\.cache_folder: got .*may write"):
        cache.check()


def test_a_store_reads_its_objects_through_it(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.write("s3://data/cached", OBJECTS["o2"])
    entry = s3.stat("s3://data/cached")
    store = Store(s3.config, DiskCache(tmp_path, 10**6))
    requests: list[int] = []
    read_into = S3.read_into

    def counted(
        self: S3, url: str, view: memoryview | None, start: int, etag: str | None
    ) -> memoryview:
        requests.append(start)
        return read_into(self, url, view, start, etag)

    monkeypatch.setattr(S3, "read_into", counted)
    for _ in range(3):
        view = memoryview(bytearray(1500))
        store.read_into(entry.url, view, 700, entry.etag, entry.size_bytes)
        assert bytes(view) == OBJECTS["o2"][700:2200]
    assert requests == [0, 1000, 2000]
    # Another object under the same name has another identity.
    s3.write("s3://data/cached", OBJECTS["o3"])
    entry = s3.stat("s3://data/cached")
    view = memoryview(bytearray(1500))
    store.read_into(entry.url, view, 700, entry.etag, entry.size_bytes)
    assert bytes(view) == OBJECTS["o3"][700:2200]
