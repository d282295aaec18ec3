"""What the ranks say of their steps, in a group of one rank."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from datasets.loading.batch import Damages
from inception.step import StepResult
from orchestration.errors import Rollback, TrainingError
from orchestration.job.load import load_job
from orchestration.job.plan import make_plan
from orchestration.worker import step_metrics as step_metrics
from orchestration.worker.progress_actor import Command
from orchestration.worker.step_metrics import StepMetrics

JOB = load_job(Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml")
PLAN = make_plan(JOB, train_samples=1437, val_samples=360)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Writer:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}

    def log(self, step: int, values: dict[str, float]) -> None:
        self.points.setdefault(step, {}).update(values)


def log_of(writer: Writer, *, can_skip: bool = False) -> tuple[StepMetrics, list[tuple[int, Any]]]:
    """(a log, the names that it asked to keep)."""
    kept: list[tuple[int, Any]] = []

    def keep(step: int, keys: tuple[str, ...]) -> str:
        kept.append((step, keys))
        return "s3://runs/x/not-finite"

    loader: Any = SimpleNamespace(wait_s=0.0, damages=Damages())
    made: Any = writer
    return StepMetrics(JOB, PLAN, loader, made, keep, can_skip=can_skip), kept


def result(loss: float, own_s: float = 0.1) -> StepResult:
    return StepResult(
        loss=torch.tensor(loss), grad_norm=torch.tensor(1.0), own_s=lambda: own_s,
        all_reduce_s=lambda: 0.05,
    )  # fmt: skip


def test_every_step_is_logged_at_its_own_place() -> None:
    writer = Writer()
    log, _ = log_of(writer)
    for loss in (3.0, 2.0):
        log.add(result(loss), ("a",))
    moment, wish = log.sync(12, Command.CHECKPOINT)
    assert {step: values["train/loss"] for step, values in writer.points.items()} == {
        11: 3.0, 12: 2.0
    }  # fmt: skip
    assert (moment["train/loss"], wish, len(log)) == (2.0, Command.CHECKPOINT, 0)


@pytest.mark.parametrize(("can_skip", "error"), [(False, TrainingError), (True, Rollback)])
def test_a_loss_that_is_no_number_names_its_samples(can_skip: bool, error: type[Exception]) -> None:
    log, kept = log_of(Writer(), can_skip=can_skip)
    for loss, key in ((3.0, "a"), (float("nan"), "b"), (float("inf"), "c")):
        log.add(result(loss), (key,))
    with pytest.raises(error, match="got nan in step 6"):
        log.sync(7, Command.CONTINUE)
    assert kept == [(6, ("b",))]


def test_the_ranks_speak_every_second_and_at_least_every_few_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow steps make a look of each; fast ones as many as log_every_steps."""
    clock = [0.0]
    monkeypatch.setattr("orchestration.worker.step_metrics.time.monotonic", lambda: clock[0])
    log, _ = log_of(Writer())
    looked = []
    for number in range(1, 60):
        clock[0] += 3.0 if number < 10 else 0.25 if number < 30 else 0.001
        log.add(result(1.0), ("a",))
        if log.is_due:
            looked.append(number)
            log.sync(number, Command.CONTINUE)
    assert looked[:10] == list(range(1, 11))
    assert {b - a for a, b in itertools.pairwise(looked) if 12 < a < 26} == {4}
    assert looked[-1] - looked[-2] == JOB.tracking.log_every_steps


def test_the_rank_that_others_wait_for_is_named() -> None:
    spread = step_metrics._spread([1.0, 1.1, 3.0, 0.9], elapsed_s=4.0)
    assert spread["train/slowest_rank"] == 2
    assert spread["train/slowest_rank_lag_fraction"] == pytest.approx((3.0 - 1.0) / 4.0)
    assert step_metrics._spread([1.0], elapsed_s=4.0) == {}
