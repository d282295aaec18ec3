"""The outbox: order, content, and another process that sends from it meanwhile."""

from pathlib import Path

import pytest

from datasets.storage.store import Store
from orchestration.tracking.outbox import Outbox


@pytest.fixture
def box(tmp_path: Path) -> Outbox:
    return Outbox(Store(), (tmp_path / "run").as_uri())


def test_the_outbox_returns_its_content_in_order(box: Outbox) -> None:
    for step in (1, 2, 3):
        box.add_points("rank-0", [("train/loss", 1.0 / step, 1_700_000_000_000, step)])
    box.add_points("driver", [("run/goodput", 0.5, 1_700_000_000_000, 9)])
    assert [p[3] for points in box.points("rank-0").values() for p in points] == [1, 2, 3]
    assert [p[3] for points in box.points().values() for p in points] == [9, 1, 2, 3]
    box.add_file("pictures/a.png", b"png")
    assert [(path, content) for path, _, content in box.files()] == [("pictures/a.png", b"png")]
    box.store.write(f"{box.run_url}/outbox/files/old.png", b"of an earlier version")
    old = '[["train/loss", 1.0, 1700000000000, 4]]'
    box.store.write(f"{box.run_url}/outbox/points/rank-0/9.json", old.encode())
    assert [path for path, _, _ in box.files()] == ["old.png", "pictures/a.png"]
    assert [p[3] for points in box.points("rank-0").values() for p in points] == [1, 2, 3, 4]
    assert box.end() is None
    box.set_end("FAILED", {"k": "v"})
    assert box.end() == ("FAILED", {"k": "v"})
    box.clear_end()
    assert box.end() is None


def test_what_another_process_sends_meanwhile_is_left_out(
    box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sync` deletes an object between the listing of the folder and the read of the object."""
    first = box.add_points("rank-0", [("train/loss", 1.0, 1, 1)])
    box.add_points("rank-0", [("train/loss", 2.0, 2, 2)])
    box.add_file("a.png", b"a")
    box.add_file("b.png", b"b")
    list_urls = Outbox._urls

    def list_then_drop(self: Outbox, folder: str) -> list[str]:
        urls = list_urls(self, folder)
        self.delete([first] if folder.startswith("points") else urls[:1])
        return urls

    monkeypatch.setattr(Outbox, "_urls", list_then_drop)
    assert list(box.points("rank-0").values()) == [[("train/loss", 2.0, 2, 2)]]
    assert [path for path, _, _ in box.files()] == ["b.png"]
