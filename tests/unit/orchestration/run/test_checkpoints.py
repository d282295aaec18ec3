"""Only whole checkpoints are loaded; the newest whole one is found, whatever lies beside it."""

import io
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.errors import StoreError
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store
from orchestration.errors import TrainingError
from orchestration.run.checkpoint import (
    Checkpoint,
    checkpoint_name,
    checkpoint_names,
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from orchestration.run.metrics import top1_of
from orchestration.worker.checkpoint_writer import CheckpointWriter


def state(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        model={"fc.weight": torch.full((2, 3), float(step))},
        optimizer={"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        average=None,
        data={"seed": 3, "fingerprint": "abc"},
    )


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Store, str]:
    """Three checkpoints of a run: after 9, 10 and 100 steps."""
    store, run_url = Store(), tmp_path.as_uri()
    for step in (9, 10, 100):
        save_checkpoint(store, run_url, state(step))
    return store, run_url


def newest_url(store: Store, run_url: str) -> str | None:
    newest = newest_checkpoint(store, run_url)
    return None if newest is None else newest[0]


def test_round_trip(saved: tuple[Store, str]) -> None:
    store, run_url = saved
    newest = newest_checkpoint(store, run_url)
    assert newest is not None
    url, loaded = newest
    assert url == f"{run_url}/{checkpoint_name(100)}"
    assert loaded.step == 100
    assert torch.equal(loaded.model["fc.weight"], torch.full((2, 3), 100.0))
    assert loaded.data == {"seed": 3, "fingerprint": "abc"}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(Store(), (tmp_path / "nothing").as_uri()) is None


@pytest.mark.parametrize(
    "damage", ["no index", "cut", "flipped", "no state", "torn index", "format"]
)
def test_damaged_one_is_passed_over(saved: tuple[Store, str], tmp_path: Path, damage: str) -> None:
    store, run_url = saved
    folder = tmp_path / checkpoint_name(100)
    content = bytearray((folder / "state.pt").read_bytes())
    index = (folder / "checkpoint.json").read_text()
    if damage == "no index":  # what a crash during the upload leaves
        (folder / "checkpoint.json").unlink()
    elif damage == "cut":
        (folder / "state.pt").write_bytes(content[:-10])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        (folder / "state.pt").write_bytes(content)
    elif damage == "no state":
        (folder / "state.pt").unlink()
    elif damage == "torn index":
        (folder / "checkpoint.json").write_text(index[:20])
    else:
        newer = decode_json(index.encode()) | {"format": 9}
        (folder / "checkpoint.json").write_bytes(encode_json(newer))
    with pytest.raises(TrainingError, match=r"step-000000100.*: got"):
        load_checkpoint(store, f"{run_url}/{checkpoint_name(100)}")
    assert newest_url(store, run_url) == f"{run_url}/{checkpoint_name(10)}"


def test_code_in_a_checkpoint_is_never_run(saved: tuple[Store, str]) -> None:
    """weights_only: a pickle that would run code is refused, though its checksum is right."""
    import hashlib

    store, run_url = saved

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    buffer = io.BytesIO()
    torch.save({"step": Harm()}, buffer)
    url = f"{run_url}/{checkpoint_name(100)}"
    store.write(f"{url}/state.pt", buffer.getvalue())
    index = decode_json(store.read(f"{url}/checkpoint.json"))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    index["files"]["state.pt"] = {"size_bytes": len(buffer.getvalue()), "sha256": digest}
    store.write(f"{url}/checkpoint.json", encode_json(index))
    with pytest.raises(TrainingError, match="something other than tensors"):
        load_checkpoint(store, url)


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    """By the average's top-1, if there is an average; a damaged checkpoint is deleted."""
    store, run_url = Store(), tmp_path.as_uri()
    scores = {1: 50.0, 2: 90.0, 3: 70.0, 4: 80.0, 5: None, 6: 60.0}
    for step, top1 in scores.items():
        metrics = {} if top1 is None else {"val/top1": 99.0, "val_ema/top1": top1}
        save_checkpoint(store, run_url, replace(state(step), metrics=metrics))
    (tmp_path / checkpoint_name(3) / "checkpoint.json").write_text("{")
    prune_checkpoints(store, run_url, keep=2)
    assert checkpoint_names(store, run_url) == [checkpoint_name(step) for step in (2, 5, 6)]
    prune_checkpoints(store, run_url, keep=3)
    assert len(checkpoint_names(store, run_url)) == 3
    best = load_checkpoint(store, f"{run_url}/{checkpoint_name(2)}")
    assert top1_of(best.metrics) == 90.0


@pytest.mark.parametrize("damage", ["no index", "no state", "cut state", "format"])
def test_a_damaged_newer_one_does_not_cost_the_last_whole_one(tmp_path: Path, damage: str) -> None:
    """A killed attempt left half of step 100; the next resumes from 50 and writes 75."""
    store, run_url = Store(), tmp_path.as_uri()
    for step in (50, 75, 100):
        save_checkpoint(store, run_url, state(step))
    index, content = (tmp_path / checkpoint_name(100) / n for n in ("checkpoint.json", "state.pt"))
    if damage == "no index":
        index.unlink()
    elif damage == "no state":
        content.unlink()
    elif damage == "cut state":
        content.write_bytes(content.read_bytes()[:-10])
    else:
        index.write_text(index.read_text().replace('"format": 2', '"format": 9'))
    prune_checkpoints(store, run_url, keep=1)
    assert newest_url(store, run_url) == f"{run_url}/{checkpoint_name(75)}"
    assert checkpoint_names(store, run_url) == [checkpoint_name(step) for step in (75, 100)]


class SlowStore(Store):
    """Writes once it may, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write, self.is_broken = threading.Event(), False

    def write(self, url: str, content: bytes) -> None:
        assert self.may_write.wait(20)
        if self.is_broken:
            raise StoreError(f"{url}: got nothing; the store is down. Wait.")
        super().write(url, content)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    store, run_url = SlowStore(), tmp_path.as_uri()
    writer = CheckpointWriter(store, run_url, keep=2, flush_metrics=lambda: None)
    live = state(1)
    writer.submit(live)
    live.model["fc.weight"].fill_(-1.0)  # the next step
    assert newest_checkpoint(store, run_url) is None
    store.may_write.set()
    writer.wait()
    newest = newest_checkpoint(store, run_url)
    assert newest is not None
    assert float(newest[1].model["fc.weight"][0, 0]) == 1.0
    store.is_broken = True
    writer.submit(state(2))
    with pytest.raises(StoreError):
        writer.submit(state(3))
    writer.close()
    assert checkpoint_names(store, run_url) == [checkpoint_name(1)]


def test_a_checkpoint_is_written_only_after_the_metrics_before_it(tmp_path: Path) -> None:
    def refuse() -> None:
        raise StoreError("outbox: got nothing; the store is down. Wait.")

    writer = CheckpointWriter(Store(), tmp_path.as_uri(), keep=2, flush_metrics=refuse)
    writer.submit(state(1))
    with pytest.raises(StoreError):
        writer.wait()
    writer.close()
    assert newest_checkpoint(Store(), tmp_path.as_uri()) is None
