"""When a worker group is followed by another, and what is said when it is not."""

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
from orchestration.driver.retry_policy import told, train_with_retries
from orchestration.errors import Rollback, ServiceError, TrainingError


class Rounds:
    """Worker groups that end as listed: with an error, or well before the last step (None)."""

    def __init__(self, *ends: TrainingFailedError | None) -> None:
        self.ends, self.began = list(ends), 0
        self.lines: list[str] = []

    def fit(self, number: int) -> None:
        assert number == self.began
        self.began += 1
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end

    def train(
        self, *, check_storage: Callable[[], None] = lambda: None, max_failures: int = 0
    ) -> None:
        """To the end of the list, and one group more."""
        train_with_retries(
            self.fit,
            is_done=lambda: not self.ends,
            check_storage=check_storage,
            max_failures=max_failures,
            log=self.lines.append,
        )


def from_worker(error: Exception) -> WorkerGroupError:
    outer = RuntimeError("ray's wrapping")
    outer.__cause__ = error
    return WorkerGroupError("ranks failed", {1: RuntimeError("Connection reset by peer"), 0: outer})


def death(*, announced: bool = False) -> WorkerGroupError:
    died = ActorDiedError()
    died._preempted = announced
    wrapped = WorkerHealthCheckFailedError("poll failed", died)
    return WorkerGroupError("ranks failed", {0: RuntimeError("Connection closed"), 1: wrapped})


STORE_AWAY = StoreError("s3://runs: got no answer; the store is away. Start it.")


@pytest.mark.parametrize(
    "error",
    [
        from_worker(STORE_AWAY),
        ControllerError(OSError("When uploading part: connection refused")),
    ],
)
def test_storage_is_waited_for(monkeypatch: pytest.MonkeyPatch, error: TrainingFailedError) -> None:
    monkeypatch.setattr(retry_policy, "STORAGE_PAUSE_S", 0.0)
    answers: list[Exception | None] = [STORE_AWAY, STORE_AWAY, None]

    def check() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    rounds = Rounds(error, None)
    rounds.train(check_storage=check)
    assert (rounds.began, answers) == (2, [])
    assert "lost its storage" in rounds.lines[0]
    assert "going on" in rounds.lines[1]


def test_storage_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_policy, "STORAGE_PAUSE_S", 0.0)
    monkeypatch.setattr(retry_policy, "STORAGE_LIMIT_S", 0.05)

    def check() -> None:
        raise STORE_AWAY

    with pytest.raises(ServiceError, match="rayception resume"):
        Rounds(from_worker(STORE_AWAY)).train(check_storage=check)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (from_worker(TrainingError("train/loss: got nan in step 3")), "train/loss: got nan"),
        (from_worker(DataError("s3://x: got damage")), "s3://x: got damage"),
        (ControllerError(TrainingError("train/loss: got nan")), "train/loss: got nan"),
        (ControllerError(ValueError("a bug\nof two lines")), "training: got of two lines"),
        (WorkerGroupError("dead", {2: RuntimeError("killed")}), "rank 2: got killed"),
        (death(), "rank 1: got a worker or node that died"),
    ],
)
def test_everything_else_ends_at_once(error: TrainingFailedError, words: str) -> None:
    rounds = Rounds(error)
    with pytest.raises(TrainingError) as caught:
        rounds.train()
    assert rounds.began == 1
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert str(told(error)) == str(caught.value)


def test_deaths_are_counted_and_words_are_final() -> None:
    rounds = Rounds(death(), death(), None)
    rounds.train(max_failures=2)
    assert rounds.began == 3
    assert rounds.lines[1] == "rank 1: got a worker or node that died; restart 2 of 2"
    with pytest.raises(TrainingError, match="died"):
        Rounds(death(), death(), death()).train(max_failures=2)
    fatal = Rounds(death(), from_worker(DataError("damage")), None)
    with pytest.raises(TrainingError, match="damage"):
        fatal.train(max_failures=9)
    assert fatal.began == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, None),  # the ranks left as they were asked to
        (death(announced=True), "as announced"),
        (ControllerError(WorkerGroupStartupTimeoutError(num_workers=2)), "looking again"),
        (from_worker(Rollback("train/loss: got nan in step 7")), "without that step"),
    ],
)
def test_what_was_to_be_expected_does_not_count(
    error: TrainingFailedError | None, words: str | None
) -> None:
    rounds = Rounds(*[error] * 30, None)
    rounds.train(max_failures=0)
    assert rounds.began == 31
    assert all(words in line for line in rounds.lines) if words else not rounds.lines
