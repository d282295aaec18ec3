"""Which failures of a worker group are retried, and how the others are reported."""

from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from datasets.errors import DataError, StoreError
from orchestration.driver import retry_policy
from orchestration.driver.retry_policy import to_error, train_with_retries
from orchestration.errors import RankMismatch, Rollback, ServiceError, TrainingError


class WorkerGroups:
    """Worker groups that end as listed: with an error, or stopped before the last step (None)."""

    def __init__(self, *ends: TrainingFailedError | None) -> None:
        self.ends, self.started = list(ends), 0
        self.lines: list[str] = []

    def fit(self, number: int) -> None:
        assert number == self.started
        self.started += 1
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end

    def train(
        self, *, check_storage: Callable[[], None] = lambda: None, max_failures: int = 0
    ) -> None:
        """To the end of the list; one more group completes the run."""
        train_with_retries(
            self.fit,
            find_last=lambda: None if self.ends else "the last checkpoint",
            check_storage=check_storage,
            max_failures=max_failures,
            log=self.lines.append,
        )


def from_worker(error: Exception) -> WorkerGroupError:
    outer = RuntimeError("Ray's wrapper")
    outer.__cause__ = error
    return WorkerGroupError("ranks failed", {1: RuntimeError("Connection reset by peer"), 0: outer})


def death(*, announced: bool = False) -> WorkerGroupError:
    died = ActorDiedError()
    died._preempted = announced
    wrapped = WorkerHealthCheckFailedError("poll failed", died)
    return WorkerGroupError("ranks failed", {0: RuntimeError("Connection closed"), 1: wrapped})


UNREACHABLE = StoreError("s3://runs: got no answer; the store is unreachable. Start it.")


@pytest.mark.parametrize(
    "error",
    [
        from_worker(UNREACHABLE),
        ControllerError(OSError("When uploading part: connection refused")),
    ],
)
def test_storage_is_waited_for(monkeypatch: pytest.MonkeyPatch, error: TrainingFailedError) -> None:
    monkeypatch.setattr(retry_policy, "STORAGE_PAUSE_S", 0.0)
    answers: list[Exception | None] = [UNREACHABLE, UNREACHABLE, None]

    def check() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    groups = WorkerGroups(error, None)
    groups.train(check_storage=check)
    assert (groups.started, answers) == (2, [])
    assert "lost its storage" in groups.lines[0]
    assert "going on" in groups.lines[1]


def test_storage_that_stays_unreachable_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_policy, "STORAGE_PAUSE_S", 0.0)
    monkeypatch.setattr(retry_policy, "STORAGE_LIMIT_S", 0.05)

    def check() -> None:
        raise UNREACHABLE

    with pytest.raises(ServiceError, match="rayception resume"):
        WorkerGroups(from_worker(UNREACHABLE)).train(check_storage=check)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (from_worker(TrainingError("train/loss: got nan in step 3")), "train/loss: got nan"),
        (from_worker(DataError("s3://x: got damage")), "s3://x: got damage"),
        (ControllerError(TrainingError("train/loss: got nan")), "train/loss: got nan"),
        (ControllerError(ValueError("a bug\nof two lines")), "training: got of two lines"),
        (WorkerGroupError("dead", {2: RuntimeError("killed")}), "rank 2: got killed"),
        (death(), "rank 1: got a worker or node that died"),
    ],
)
def test_everything_else_ends_at_once(error: TrainingFailedError, text: str) -> None:
    groups = WorkerGroups(error)
    with pytest.raises(TrainingError) as caught:
        groups.train()
    assert groups.started == 1
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert str(to_error(error)) == str(caught.value)


def test_deaths_are_counted_and_fatal_errors_end_the_run() -> None:
    groups = WorkerGroups(death(), death(), None)
    groups.train(max_failures=2)
    assert groups.started == 3
    assert groups.lines[1] == "rank 1: got a worker or node that died; restart 2 of 2"
    with pytest.raises(TrainingError, match="died"):
        WorkerGroups(death(), death(), death()).train(max_failures=2)
    fatal = WorkerGroups(death(), from_worker(DataError("damage")), None)
    with pytest.raises(TrainingError, match="damage"):
        fatal.train(max_failures=9)
    assert fatal.started == 2


def test_a_rank_on_a_broken_machine_is_a_failure_and_named() -> None:
    different = from_worker(
        RankMismatch("step 40: got different bits from rank 1 on 10.0.0.2; ...")
    )
    groups = WorkerGroups(different, None)
    groups.train(max_failures=1)
    assert groups.lines == [
        "step 40: got different bits from rank 1 on 10.0.0.2; ...; restart 1 of 1"
    ]
    with pytest.raises(RankMismatch, match=r"10\.0\.0\.2"):
        WorkerGroups(different).train(max_failures=0)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, None),  # the ranks stopped as they were asked to
        (death(announced=True), "as announced"),
        (ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)), "looking again"),
        (from_worker(Rollback("train/loss: got nan in step 7")), "without that step"),
    ],
)
def test_expected_ends_do_not_count_as_failures(
    error: TrainingFailedError | None, text: str | None
) -> None:
    groups = WorkerGroups(*[error] * 30, None)
    groups.train(max_failures=0)
    assert groups.started == 31
    assert all(text in line for line in groups.lines) if text else not groups.lines
