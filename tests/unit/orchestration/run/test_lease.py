"""Whose a run is."""

from pathlib import Path

import pytest

from datasets.storage.store import Store
from orchestration.errors import LeaseLost
from orchestration.run.lease import CLAIM_FILE, check_claim, make_claim, save_claim


@pytest.fixture
def run_url(tmp_path: Path) -> str:
    return (tmp_path / "run").as_uri()


def test_the_newest_driver_has_the_run(run_url: str) -> None:
    store, first, second = Store(), make_claim(), make_claim()
    save_claim(store, run_url, first)
    check_claim(store, run_url, first)
    save_claim(store, run_url, second)
    check_claim(store, run_url, second)
    with pytest.raises(LeaseLost, match=r"got another driver, process \d+ on .*; a run has one\."):
        check_claim(store, run_url, first)
    save_claim(store, run_url, first)  # taken back
    check_claim(store, run_url, first)


def test_a_later_version_may_say_more(run_url: str) -> None:
    store = Store()
    store.write(f"{run_url}/{CLAIM_FILE}", b'{"mark": "another", "pid": 7, "cloud": "none"}')
    with pytest.raises(LeaseLost, match="process 7 on None"):
        check_claim(store, run_url, make_claim())


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"7", b'{"pid": 1}', b"\xff\xfe"])
def test_what_nobody_said_takes_nothing_over(run_url: str, content: bytes | None) -> None:
    store = Store()
    if content is not None:
        store.write(f"{run_url}/{CLAIM_FILE}", content)
    check_claim(store, run_url, make_claim())
