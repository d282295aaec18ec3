"""Decides after each worker group whether training goes on with another one.

Ray Train can replace workers by itself, but it does so whatever they died of, gives up when its own
controller fails (as when storage is unreachable for a moment), waits for a node that will not come
back, and repeats the steps since the last checkpoint when a group grows. Here each fit() is one
worker group without retries. It returns (the run is done, or the ranks checkpointed and stopped as
asked) or raises, and this module alone decides what comes next. Each fit() has its own folder for
Ray's snapshots, so that a torn or stale one is never read: only the run's checkpoints count.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import RayActorError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from datasets.errors import DataError, LoaderError, StoreError
from inception.errors import ModelError
from orchestration.errors import (
    EXPECTED_ERRORS,
    JobError,
    RankMismatch,
    RayceptionError,
    Rollback,
    ServiceError,
    TrainingError,
)

STORAGE_LIMIT_S = 900.0  # how long a run waits for its storage
STORAGE_PAUSE_S = 5.0
MAX_GROUPS = 1000

T = TypeVar("T")
FATAL = (JobError, TrainingError, DataError, ModelError)  # a retry would fail in the same way


def train_with_retries(
    fit: Callable[[int], None],
    *,
    find_last: Callable[[], T | None],
    check_storage: Callable[[], None],
    max_failures: int,
    log: Callable[[str], None],
) -> T:
    """Calls fit(0), fit(1), ..., each of which trains with a new worker group, until find_last()
    finds the last checkpoint, and returns that.

    check_storage: raises StoreError while storage is unreachable. Raises the error of to_error if a
    retry would not help or after more than max_failures failures; ServiceError if storage does not
    come back.
    """
    failures = 0
    for number in range(MAX_GROUPS):
        try:
            fit(number)
        except TrainingFailedError as error:
            known = _known_errors(error)
            rollback = next((cause for cause in known if isinstance(cause, Rollback)), None)
            if rollback is not None:
                log(f"{rollback}; going on from the checkpoint before it, without that step")
            elif any(isinstance(cause, FATAL) for cause in known):
                raise to_error(error) from error
            elif _is_storage_failure(error, known):
                log(f"training lost its storage ({str(known[0] if known else error)[:120]})")
                _wait_for_storage(check_storage)
                log("the storage answers; going on from the newest checkpoint")
            elif isinstance(_controller_failure(error), WorkerGroupStartupTimeoutError):
                log("a node that the ranks were to start on is gone or taken; looking again")
            elif _is_preempted(error):
                log("a node was taken away as announced; going on from the newest checkpoint")
            else:
                failures += 1
                if failures > max_failures:
                    raise to_error(error) from error
                log(f"{describe_failure(error)}; restart {failures} of {max_failures}")
        else:
            if (last := find_last()) is not None:
                return last
    raise TrainingError(
        f"cluster: got {MAX_GROUPS} worker groups, none of which reached the last step; something "
        "ends them as fast as they start. See Ray's logs, then `rayception resume`."
    )


def to_error(error: TrainingFailedError) -> RayceptionError:
    """The cause as one line: the first rank's own error if it is an expected one."""
    known = _known_errors(error)
    if known:
        return known[0] if isinstance(known[0], RayceptionError) else TrainingError(str(known[0]))
    return TrainingError(
        f"{describe_failure(error)}; training ended after its allowed restarts. See the worker "
        "logs, or --debug."
    )


def describe_failure(error: TrainingFailedError) -> str:
    """`rank 1: got ...`. A dead rank is the cause; the others only report that it is missing."""
    for known in _known_errors(error):
        if isinstance(known, RankMismatch):
            return str(known)
    failures = _failures_by_rank(error)
    for rank, failure in failures.items():
        if _find_death(failure) is not None:
            return f"{rank}: got a worker or node that died"
    where, cause = next(iter(failures.items()), ("training", error))
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{where}: got {lines[-1].strip()[:300] if lines else type(cause).__name__}"


def _failures_by_rank(error: TrainingFailedError) -> dict[str, BaseException]:
    """By `rank 0`, `rank 1`, ..."""
    failures = sorted((getattr(error, "worker_failures", None) or {}).items())
    return {f"rank {rank}": failure for rank, failure in failures}


def _controller_failure(error: TrainingFailedError) -> BaseException | None:
    return getattr(error, "controller_failure", None)


def _known_errors(error: TrainingFailedError) -> list[BaseException]:
    """The EXPECTED_ERRORS that made fit() fail, by rank; the controller's last."""
    causes = [*_failures_by_rank(error).values(), _controller_failure(error)]
    return [known for cause in causes if (known := _known_cause(cause)) is not None]


def _known_cause(error: BaseException | None) -> BaseException | None:
    """The first of EXPECTED_ERRORS in an error's chain of causes."""
    while error is not None and not isinstance(error, EXPECTED_ERRORS):
        error = (
            error.__cause__ or getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        )
    return error


def _is_storage_failure(error: TrainingFailedError, known: list[BaseException]) -> bool:
    """Whether a rank lost its storage, or Ray's controller could not write its snapshot (pyarrow
    raises OSError)."""
    if any(isinstance(cause, StoreError) and not isinstance(cause, LoaderError) for cause in known):
        return True
    failure = _controller_failure(error)
    return isinstance(failure, OSError) or isinstance(getattr(failure, "cause", None), OSError)


def _is_preempted(error: TrainingFailedError) -> bool:
    """Whether a rank died because its node was drained."""
    deaths = [_find_death(failure) for failure in _failures_by_rank(error).values()]
    return any(death is not None and death.preempted for death in deaths)


def _find_death(error: BaseException) -> RayActorError | None:
    """Ray's error for a dead worker process, alone or within that of a health check."""
    for candidate in (error, getattr(error, "health_check_failure", None), error.__cause__):
        if isinstance(candidate, RayActorError):
            return candidate
    return None


def _wait_for_storage(check_storage: Callable[[], None]) -> None:
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
