"""One flipped bit in any file that a run reads again is noticed, and the file is named.

Each file's bits are flipped one at a time, spread over the whole of it. A flip that changes nothing
that is read (the case of a letter in `\\u00EF`, the name of a checksum's own field) may pass.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.errors import DataError
from datasets.loading.stream import fetch_run
from datasets.packing.audit import verify
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store
from inception.predictions import make_predictions
from orchestration.errors import JobError, TrainingError
from orchestration.job.load import load_job, to_dict
from orchestration.run.checkpoint import (
    Checkpoint,
    encode_tensors,
    load_checkpoint,
    newest_checkpoint,
    newest_summary,
    save_checkpoint,
)
from orchestration.run.predictions_file import load_predictions, save_predictions
from orchestration.run.record import RunRecord, load_record, save_record
from orchestration.run.timeline import Attempt, load_attempts, save_attempts
from orchestration.tracking.outbox import Outbox
from orchestration.worker import final_network

ROOT = Path(__file__).resolve().parents[4]
STORE = Store()
FLIPS = 400  # of a file


def flipped(path: Path, begin: int = 0, end: int | None = None) -> Any:
    """For each flip: its bit, while the file has it."""
    content = path.read_bytes()
    bits = 8 * (len(content) if end is None else end)
    step = max(1, (bits - 8 * begin) // FLIPS) | 1  # odd: every place within a byte comes up
    try:
        for bit in range(8 * begin, bits, step):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            yield bit
    finally:
        path.write_bytes(content)


def assert_noticed(
    path: Path, read: Callable[[], object], errors: type[Exception], *, limit: float = 0.02
) -> None:
    """Each flip raises an error that is one line and names the file, or what is read is equal; at
    most this share of them is so."""
    expected, passed, total = repr(read()), 0, 0
    for bit in flipped(path):
        total += 1
        try:
            assert repr(read()) == expected, f"{path.name}: bit {bit} changes what is read"
            passed += 1
        except errors as error:
            message = str(error)
            assert path.name in message, message
            assert "\n" not in message
    assert total >= FLIPS / 2
    assert passed <= limit * total


def test_in_a_checkpoint(tmp_path: Path) -> None:
    def state(step: int) -> Checkpoint:
        return Checkpoint(
            step=step,
            model={"fc.weight": torch.arange(12.0)},
            optimizer={"param_groups": [{"lr": 0.1}]},
            average=None,
            data={"seed": 3},
            metrics={"val/top1": 71.5},
        )

    run_url = tmp_path.as_uri()
    old, new = (save_checkpoint(STORE, run_url, state(step)) for step in (10, 20))
    for file in ("state.pt", "checkpoint.json"):
        path = tmp_path / "step-000000020" / file
        assert_noticed(path, lambda: load_checkpoint(STORE, new), TrainingError)
        for _ in zip(flipped(path, 40), range(3), strict=False):  # and the one before is used
            newest, summary = newest_checkpoint(STORE, run_url), newest_summary(STORE, run_url)
            assert newest is not None
            assert summary is not None
            assert newest[0] == summary.url == old


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    samples, _ = digits("val")
    names = ["zéro", *(f"class {number}" for number in range(1, 10))]
    folder = tmp_path_factory.mktemp("split")
    return folder, pack(samples, STORE, folder.as_uri(), classes=names, samples_per_shard=90)


@pytest.mark.parametrize("file", ["index.json", "index.offsets", "index.checksums"])
def test_in_an_index(split: tuple[Path, Manifest], file: str) -> None:
    folder, _ = split

    def read() -> object:
        manifest = load_manifest(STORE, folder.as_uri())
        return manifest.classes, manifest.label, [dataclasses.astuple(s) for s in manifest.shards]

    assert_noticed(folder / file, read, DataError)


def test_in_a_shard(split: tuple[Path, Manifest]) -> None:
    """From the first header to the padding of the last label: one sample is damaged, and named."""
    folder, _ = split
    manifest = load_manifest(STORE, folder.as_uri())
    shard, path = manifest.shards[1], folder / manifest.shards[1].name
    limits = shard.offsets.astype(np.int64) * 512
    whole = [fetch_run(STORE, manifest, (1, 0, 90)).sample(n)["__key__"] for n in range(90)]
    count = 0
    for bit in flipped(path, 0, int(limits[-1])):
        number = int(np.searchsorted(limits, bit // 8, side="right")) - 1
        run = fetch_run(STORE, manifest, (1, 0, 90))
        lost = {n: sample for n in range(90) if "__damage__" in (sample := run.sample(n))}
        assert list(lost) == [number], bit
        message = str(lost[number]["__damage__"])
        assert manifest.shard_url(1) in message
        assert "differ from the split's checksum" in message
        key = lost[number]["__key__"]
        assert f":{key}: " in message
        if key != whole[number]:  # its first header has a checksum of its own, and gives no name
            assert key == f"sample {number}"
            assert bit // 8 < limits[number] + 512
            count += 1
        if bit % 50 == 0:
            damages = verify(STORE, manifest, threads=1, on_shard=lambda: None)
            assert {damage.shard for damage in damages} == {path.name}
    assert count < FLIPS / 2


def test_in_a_run_record(tmp_path: Path) -> None:
    job = load_job(ROOT / "jobs/quickstart.yaml")
    record = RunRecord(
        name="naïve", job=to_dict(job), classes=["a", "é"], experiment_id="7", run_id="abc"
    )
    save_record(STORE, tmp_path.as_uri(), record)
    assert load_record(STORE, tmp_path.as_uri()).classes == record.classes
    assert_noticed(tmp_path / "run.json", lambda: load_record(STORE, tmp_path.as_uri()), JobError)


def test_in_an_outbox_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named in the log and not sent; neither a run nor `sync` ends for it."""
    box = Outbox(STORE, tmp_path.as_uri())
    url = box.add_points("rank-0", [("train/loss", 1.5 + step, 10**12, step) for step in range(20)])
    box.add_points("rank-1", [("train/loss", 0.5, 10**12, 1)])
    box.add_file("pictures/a.png", bytes(range(256)))
    box.set_end("FINISHED", {"rayception.checkpoint.last": "s3://runs/a/step-000000020"})

    def read() -> object:
        """Raises what was logged."""
        caplog.clear()
        content = dict(box.points()), list(box.files()), box.end()
        if caplog.messages:
            [message] = caplog.messages
            raise ResourceWarning(message)
        return content

    outbox = tmp_path / "outbox"
    with caplog.at_level(logging.WARNING):
        for path in (
            outbox / "points" / "rank-0" / url.rpartition("/")[2],
            outbox / "sealed-files" / "pictures" / "a.png",
            outbox / "end.json",
        ):
            assert_noticed(path, read, ResourceWarning, limit=0.06)  # they are short
            for _ in zip(flipped(path, 12), range(1), strict=False):
                assert [p for points in box.points("rank-1").values() for p in points]


def test_in_the_predictions(tmp_path: Path) -> None:
    """torch.load would not notice it."""
    p = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    samples = torch.arange(80).reshape(40, 2)
    targets = torch.zeros(40, dtype=torch.int64)
    keys = tuple(f"sample-{number}" for number in range(40))
    predictions = make_predictions(p, targets, torch.ones(40), samples, keys)
    url = tmp_path.as_uri()
    save_predictions(STORE, url, predictions)
    assert_noticed(tmp_path / "predictions.pt", lambda: load_predictions(STORE, url), TrainingError)
    encoded = encode_tensors(predictions)  # as earlier versions wrote it
    STORE.write(f"{url}/predictions.pt", encoded)
    assert repr(load_predictions(STORE, url)) == repr(predictions)


def test_in_the_final_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made again from the checkpoint, whose bytes are checked."""
    state = Checkpoint(step=9, model={}, optimizer={}, average=None, data={})
    url, job = tmp_path.as_uri(), load_job(ROOT / "jobs/quickstart.yaml")
    save_checkpoint(STORE, url, state)
    last = newest_summary(STORE, url)
    assert last is not None
    made = [bytes(range(256))]
    monkeypatch.setattr(final_network, "encode_network", lambda job, state: made[0])
    final_network.write_network(job, STORE, url, state)
    made[0] = b"made again"

    def read() -> object:
        caplog.clear()
        network = final_network.read_network(job, STORE, url, last)
        if network == b"made again":
            raise ResourceWarning(caplog.messages[0])
        return network[:256]  # a flip in the trailer's name leaves it behind the file

    assert read() == bytes(range(256))
    assert_noticed(tmp_path / "network-000000009.pt2", read, ResourceWarning, limit=0.05)


def test_in_a_timeline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run does not end for that: the log says that its earlier attempts are forgotten."""
    attempt = Attempt(
        began=1.5e9, ended=1.6e9, ranks=2, from_step=0, to_step=90, trained_s=70.25, ended_by="x"
    )
    url = tmp_path.as_uri()
    save_attempts(STORE, url, [attempt])

    def read() -> object:
        caplog.clear()
        attempts = load_attempts(STORE, url)
        if not attempts:
            raise ResourceWarning(caplog.messages[0])
        return attempts

    assert_noticed(tmp_path / "timeline.json", read, ResourceWarning)
