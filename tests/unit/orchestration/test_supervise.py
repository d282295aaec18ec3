"""When fit() is called again, and what is said when it is not."""

from typing import Any

import pytest
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from datasets.errors import DataError, StoreError
from orchestration import supervise
from orchestration.errors import ServiceError, TrainingError
from orchestration.supervise import EndAtFatal, fit_until_done, told


class Rounds:
    """Trainers whose fit() fails as listed, then ends well."""

    def __init__(self, *errors: TrainingFailedError) -> None:
        self.errors, self.began = list(errors), 0

    def __call__(self, number: int) -> "Rounds":
        assert number == self.began
        self.began += 1
        return self

    def fit(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def from_worker(error: Exception) -> WorkerGroupError:
    outer = RuntimeError("ray's wrapping")
    outer.__cause__ = error
    return WorkerGroupError("ranks failed", {1: RuntimeError("Connection reset by peer"), 0: outer})


STORE_AWAY = StoreError("s3://runs: got no answer; the store is away. Start it.")


@pytest.mark.parametrize(
    "error",
    [
        from_worker(STORE_AWAY),
        ControllerError(OSError("When uploading part: connection refused")),
    ],
)
def test_storage_is_waited_for(monkeypatch: pytest.MonkeyPatch, error: TrainingFailedError) -> None:
    monkeypatch.setattr(supervise, "STORAGE_PAUSE_S", 0.0)
    answers: list[Exception | None] = [STORE_AWAY, STORE_AWAY, None]

    def check() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    rounds = Rounds(error)
    lines: list[str] = []
    assert fit_until_done(rounds, check, lines.append) == "done"
    assert (rounds.began, answers) == (2, [])
    assert "waiting" in lines[0]
    assert "going on" in lines[1]


def test_storage_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "STORAGE_PAUSE_S", 0.0)
    monkeypatch.setattr(supervise, "STORAGE_LIMIT_S", 0.05)

    def check() -> None:
        raise STORE_AWAY

    with pytest.raises(ServiceError, match="rayception resume"):
        fit_until_done(Rounds(from_worker(STORE_AWAY)), check, lambda line: None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (from_worker(TrainingError("train/loss: got nan in step 3")), "train/loss: got nan"),
        (from_worker(DataError("s3://x: got damage")), "s3://x: got damage"),
        (ControllerError(TrainingError("train/loss: got nan")), "train/loss: got nan"),
        (ControllerError(ValueError("a bug\nof two lines")), "training: got of two lines"),
        (WorkerGroupError("dead", {2: RuntimeError("killed")}), "rank 2: got killed"),
    ],
)
def test_everything_else_ends_at_once(error: TrainingFailedError, words: str) -> None:
    rounds = Rounds(error)
    with pytest.raises(TrainingError) as caught:
        fit_until_done(rounds, lambda: None, lambda line: None)
    assert rounds.began == 1
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert str(told(error)) == str(caught.value)


def test_rays_retries_end_at_what_would_only_happen_again() -> None:
    end = EndAtFatal()
    end.after_exception(None, from_worker(STORE_AWAY).worker_failures)
    end.after_exception(None, {0: RuntimeError("killed")})
    with pytest.raises(DataError):
        end.after_exception(None, from_worker(DataError("damage")).worker_failures)
