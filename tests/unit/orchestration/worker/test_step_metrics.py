"""Step metrics in a process group of one rank."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from datasets.loading.batch import DamageCounts
from inception.step import StepResult
from orchestration.errors import Rollback, TrainingError
from orchestration.job.load import load_job
from orchestration.job.plan import make_plan
from orchestration.worker import step_metrics
from orchestration.worker.progress_actor import Command
from orchestration.worker.step_metrics import StepMetrics

JOB = load_job(Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml")
PLAN = make_plan(JOB, train_samples=1437, val_samples=360)


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Writer:
    """Records what is logged."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}

    def log(self, step: int, values: dict[str, float]) -> None:
        self.points.setdefault(step, {}).update(values)


def make_metrics(
    writer: Writer, *, can_skip: bool = False
) -> tuple[StepMetrics, list[tuple[int, Any]]]:
    """(metrics, the samples that they recorded: step, names)."""
    recorded: list[tuple[int, Any]] = []

    def record_samples(step: int, keys: tuple[str, ...]) -> str:
        recorded.append((step, keys))
        return "s3://runs/x/not-finite"

    loader: Any = SimpleNamespace(wait_s=0.0, damages=DamageCounts())
    any_writer: Any = writer
    return StepMetrics(JOB, PLAN, loader, any_writer, record_samples, can_skip=can_skip), recorded


def result(loss: float) -> StepResult:
    return StepResult(
        loss=torch.tensor(loss), grad_norm=torch.tensor(1.0), compute_s=lambda: 0.1,
        all_reduce_s=lambda: 0.05,
    )  # fmt: skip


def test_every_step_is_logged_at_its_own_place() -> None:
    writer = Writer()
    metrics, _ = make_metrics(writer)
    for loss in (3.0, 2.0):
        metrics.add(result(loss), ("a",))
    values, command = metrics.sync(12, Command.CHECKPOINT)
    assert {step: point["train/loss"] for step, point in writer.points.items()} == {
        11: 3.0, 12: 2.0
    }  # fmt: skip
    assert (values["train/loss"], command, len(metrics)) == (2.0, Command.CHECKPOINT, 0)


@pytest.mark.parametrize(("can_skip", "error"), [(False, TrainingError), (True, Rollback)])
def test_a_loss_that_is_no_number_names_its_samples(can_skip: bool, error: type[Exception]) -> None:
    metrics, recorded = make_metrics(Writer(), can_skip=can_skip)
    for loss, key in ((3.0, "a"), (float("nan"), "b"), (float("inf"), "c")):
        metrics.add(result(loss), (key,))
    with pytest.raises(error, match="got nan in step 6"):
        metrics.sync(7, Command.CONTINUE)
    assert recorded == [(6, ("b",))]


def test_ranks_sync_every_second_and_at_least_every_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each step if steps are slow; after log_every_steps if they are fast."""
    clock = [0.0]
    monkeypatch.setattr("orchestration.worker.step_metrics.time.monotonic", lambda: clock[0])
    metrics, _ = make_metrics(Writer())
    synced = []
    for step in range(1, 60):
        clock[0] += 3.0 if step < 10 else 0.25 if step < 30 else 0.001
        metrics.add(result(1.0), ("a",))
        if metrics.is_due:
            synced.append(step)
            metrics.sync(step, Command.CONTINUE)
    assert synced[:10] == list(range(1, 11))
    assert {b - a for a, b in itertools.pairwise(synced) if 12 < a < 26} == {4}
    assert synced[-1] - synced[-2] == JOB.tracking.log_every_steps


def test_the_rank_that_others_wait_for_is_named() -> None:
    slowest = step_metrics._slowest_rank([1.0, 1.1, 3.0, 0.9], elapsed_s=4.0)
    assert slowest["train/slowest_rank"] == 2
    assert slowest["train/slowest_rank_lag_fraction"] == pytest.approx((3.0 - 1.0) / 4.0)
    assert step_metrics._slowest_rank([1.0], elapsed_s=4.0) == {}
