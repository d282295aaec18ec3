"""A run that an earlier version began, kept as its folder: this version reads every file of it.

tests/golden/stored-run.tar.xz is the folder of a run of jobs/quickstart.yaml with `OVERRIDES` on
two ranks. MLflow was killed after step 20 and the driver after step 90; the newest checkpoint is of
step 80. The host's name was replaced, and older checkpoints were left out.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from datasets.storage.store import Store
from inception.ema import WeightAverage
from inception.network import build_network
from inception.optim import build_optimizer
from orchestration.errors import JobError, LeaseLost
from orchestration.job.load import apply_overrides, flatten, from_dict, load_job, to_dict
from orchestration.run.checkpoint import checkpoint_tags, newest_checkpoint, newest_summary
from orchestration.run.lease import Lease
from orchestration.run.record import find_resumed, load_record
from orchestration.run.timeline import load_attempts
from orchestration.tracking.outbox import Outbox

ROOT = Path(__file__).resolve().parents[4]
OVERRIDES = [
    "name=stored", "model.width=0.03", "schedule.epochs=4", "schedule.warmup_epochs=0.5",
    "checkpoint.every_steps=20", "tracking.log_every_steps=5",
]  # fmt: skip


@pytest.fixture
def run_url(tmp_path: Path) -> str:
    with tarfile.open(ROOT / "tests/golden/stored-run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return (tmp_path / "stored-run").as_uri()


def test_its_record_is_the_job_and_resuming_it_keeps_what_the_result_depends_on(
    run_url: str,
) -> None:
    job = load_job(ROOT / "jobs/quickstart.yaml", OVERRIDES)
    record = load_record(Store(), run_url)
    assert record.name == "stored-20261128-115116-64d5"
    assert record.classes == [str(digit) for digit in range(10)]
    assert record.run_id == "6dee32b861b1492f8a281dafeddba502"
    assert from_dict(record.job) == job
    now = flatten(json.loads(json.dumps(to_dict(job))))
    for name, value in flatten(record.job).items():  # new fields have defaults
        assert now[name] == value, name
    assert find_resumed(Store(), run_url, job).changed == {}
    verified = load_job(ROOT / "jobs/quickstart.yaml", [*OVERRIDES, "data.verify=true"])
    changed = find_resumed(Store(), run_url, verified).changed  # once its splits have checksums
    assert changed == {"rayception.now.data.verify": "True"}
    other = load_job(ROOT / "jobs/quickstart.yaml", [*OVERRIDES, "optim.lr=0.1"])
    with pytest.raises(JobError, match=r"optim\.lr: got 0\.1, but the run began with 0\.045"):
        find_resumed(Store(), run_url, other)


@pytest.mark.parametrize("override", ["cluster.cpus_per_worker=2", "cluster.reduction=fast"])
def test_what_the_bits_depend_on_is_refused(run_url: str, override: str) -> None:
    job = apply_overrides(from_dict(load_record(Store(), run_url).job), [override])
    with pytest.raises(JobError, match="a resumed run must come to the same result"):
        find_resumed(Store(), run_url, job)
    elsewhere = apply_overrides(job, ["cluster.accelerators=H100:2", "cluster.reduction=exact"])
    changed = find_resumed(Store(), run_url, elsewhere).changed  # to GPUs, which MLflow notes
    assert changed["rayception.now.cluster.accelerators"] == "H100:2"


def test_its_checkpoint_restores_network_optimizer_and_average(run_url: str) -> None:
    newest = newest_checkpoint(Store(), run_url)
    summary = newest_summary(Store(), run_url)
    assert newest is not None
    assert summary is not None
    url, state = newest
    assert (url, state.step, summary.step) == (f"{run_url}/step-000000080", 80, 80)
    assert checkpoint_tags(Store(), run_url)["rayception.checkpoint.last"] == url
    job = load_job(ROOT / "jobs/quickstart.yaml", OVERRIDES)
    model = build_network(job.model.architecture(), seed=job.seed)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(
        model, name=job.optim.name, lr=job.optim.lr, weight_decay=job.optim.weight_decay,
        momentum=job.optim.momentum, decay=job.optim.decay, eps=job.optim.eps,
    )  # fmt: skip
    assert job.optim.average_decay is not None
    average = WeightAverage(model, decay=job.optim.average_decay)
    model.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    assert state.average is not None
    average.load_state_dict(state.average)
    assert state.averaged is not None
    assert state.averaged.keys() == fresh.keys()
    trained = model.state_dict()
    moved = [name for name in fresh if not torch.equal(fresh[name], trained[name])]
    assert len(moved) > 0.9 * len(fresh)
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))
    assert state.data["fingerprint"].startswith("1592a53a89b41a73")


def test_its_attempts_its_owner_and_what_mlflow_lacks(run_url: str) -> None:
    (attempt,) = load_attempts(Store(), run_url)
    assert (attempt.ranks, attempt.from_step, attempt.ended_by) == (2, 0, "")
    assert attempt.phases.keys() >= {"command", "stack", "ray", "mlflow", "workers"}
    with pytest.raises(
        LeaseLost, match=r"process 9831 on node-1, .* since 2026-11-28 11:51:16 UTC"
    ):
        Lease(store=Store(), run_url=run_url).check()
    outbox = Outbox(Store(), run_url)
    assert outbox.end() is None
    assert len(outbox.points("driver")) == 1
    points = [point for each in outbox.points().values() for point in each]
    assert "startup/workers_seconds" in [key for key, *_ in points]
    steps = [step for key, _, _, step in points if key == "train/loss"]
    assert steps == list(range(21, 91))
