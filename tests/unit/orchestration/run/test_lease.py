"""Which driver owns a run."""

from pathlib import Path

import pytest

from datasets.storage.store import Store
from orchestration.errors import LeaseLost
from orchestration.run.lease import LEASE_FILE, Lease


@pytest.fixture
def run_url(tmp_path: Path) -> str:
    return (tmp_path / "run").as_uri()


def test_the_newest_driver_owns_the_run(run_url: str) -> None:
    first, second = (Lease(store=Store(), run_url=run_url) for _ in range(2))
    first.acquire()
    first.check()
    second.acquire()
    second.check()
    with pytest.raises(LeaseLost, match=r"got another driver, process \d+ on .*; a run has one\."):
        first.check()
    first.acquire()  # taken back
    first.check()


def test_a_lease_of_a_later_version_may_hold_more(run_url: str) -> None:
    lease = Lease(store=Store(), run_url=run_url)
    content = b'{"mark": "another", "pid": 7, "cloud": "none"}'
    lease.store.write(f"{run_url}/{LEASE_FILE}", content)
    with pytest.raises(LeaseLost, match="process 7 on None"):
        lease.check()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"7", b'{"pid": 1}', b"\xff\xfe"])
def test_without_a_readable_lease_nothing_is_lost(run_url: str, content: bytes | None) -> None:
    lease = Lease(store=Store(), run_url=run_url)
    if content is not None:
        lease.store.write(f"{run_url}/{LEASE_FILE}", content)
    lease.check()
