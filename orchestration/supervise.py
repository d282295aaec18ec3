"""fit(), again where Ray gives up although going on would work, and never where it would not.

Ray Train replaces dead workers `max_failures` times whatever they died of, and ends at once when
its controller fails, as it does when storage is away for a moment. Here a worker that says what is
wrong with the job or the data ends the run at its first word, and a run that lost its storage
waits until that answers and goes on from the newest whole checkpoint. Each fit() has a folder of
its own for Ray's snapshots, so a torn or stale one is never read: the checkpoints' own index is
the truth.
"""

import time
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import TrainingFailedError, UserCallback

from datasets.errors import DataError, LoaderError, StoreError
from inception.errors import ModelError
from orchestration.errors import (
    TOLD_IN_ONE_LINE,
    JobError,
    RayceptionError,
    ServiceError,
    TrainingError,
)

STORAGE_LIMIT_S = 900.0  # how long a run waits for its storage
STORAGE_PAUSE_S = 5.0
MAX_ROUNDS = 20  # of fit(); each begins where the one before ended

FATAL = (JobError, TrainingError, DataError, ModelError)  # would only happen again


class EndAtFatal(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: what is raised here ends fit() without another attempt."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank in sorted(worker_exceptions):
            word = own_word(worker_exceptions[rank])
            if isinstance(word, FATAL):
                raise word


def fit_until_done(
    build: Callable[[int], Any], check_storage: Callable[[], None], say: Callable[[str], None]
) -> "ray.train.Result":
    """build: the trainer of round 0, 1, ... check_storage: raises StoreError while it is away.

    Raises TrainingError: what a worker said, or that max_failures were not enough; ServiceError:
    the storage did not come back.
    """
    number = 0
    while True:
        try:
            return build(number).fit()
        except TrainingFailedError as error:
            words = _words(error)
            if any(isinstance(word, FATAL) for word in words) or not _is_storage(error, words):
                raise told(error) from error
            number += 1
            if number >= MAX_ROUNDS:
                raise told(error) from error
            say(f"training lost its storage ({str(words[0] if words else error)[:120]}); waiting")
            _wait(check_storage)
            say("the storage answers; going on from the newest checkpoint")


def told(error: TrainingFailedError) -> RayceptionError:
    """One line for what made fit() fail: the first rank's own words where they are ours."""
    for word in _words(error):
        return word if isinstance(word, RayceptionError) else TrainingError(str(word))
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {}) or {}
    first: BaseException = failures[min(failures)] if failures else error
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    where = f"rank {min(failures)}" if failures else "training"
    return TrainingError(
        f"{where}: got {lines[-1].strip()[:300] if lines else type(first).__name__}; training "
        "ended after its allowed restarts. See the worker logs, or --debug."
    )


def own_word(error: BaseException | None) -> BaseException | None:
    """The error of ours among an error's causes, if there is one."""
    while error is not None:
        if isinstance(error, TOLD_IN_ONE_LINE):
            return error
        error = (
            error.__cause__ or getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        )
    return None


def _words(error: TrainingFailedError) -> list[BaseException]:
    """Everything of ours that made fit() fail, by rank."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {}) or {}
    causes = [failures[rank] for rank in sorted(failures)]
    causes.append(getattr(error, "controller_failure", None))  # type: ignore[arg-type]
    return [word for cause in causes if (word := own_word(cause)) is not None]


def _is_storage(error: TrainingFailedError, words: list[BaseException]) -> bool:
    """Whether storage made fit() fail: a worker said so, or Ray's controller could not write its
    snapshot (pyarrow's OSError)."""
    if any(isinstance(word, StoreError) and not isinstance(word, LoaderError) for word in words):
        return True
    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, OSError) or isinstance(getattr(failure, "cause", None), OSError)


def _wait(check_storage: Callable[[], None]) -> None:
    deadline = time.monotonic() + STORAGE_LIMIT_S
    while True:
        try:
            return check_storage()
        except StoreError as error:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"checkpoint.storage: got no answer for {STORAGE_LIMIT_S:.0f} s; training "
                    f"cannot go on without it ({error}). Bring it back, then `rayception resume`."
                ) from error
            time.sleep(STORAGE_PAUSE_S)
