"""Training in rounds of fit(): again where going on would work, and never where it would not.

Ray Train can replace workers by itself, but it replaces them whatever they died of, ends at once
when its own controller fails (as when storage is away for a moment), waits for a node that will
not come back, and redoes the steps since the last checkpoint when a group grows. So here each
fit() is one worker group, without retries: it ends well (done, or the ranks saved and left, as
they were asked to) or with an error, and what comes next is decided in one place. Each fit() has a
folder of its own for Ray's snapshots, so a torn or stale one is never read: the checkpoints' own
index is the truth.
"""

import time
from collections.abc import Callable

from ray.exceptions import RayActorError
from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from datasets.errors import DataError, LoaderError, StoreError
from inception.errors import ModelError
from orchestration.errors import (
    EXPECTED_ERRORS,
    JobError,
    RayceptionError,
    Rollback,
    ServiceError,
    TrainingError,
)

STORAGE_LIMIT_S = 900.0  # how long a run waits for its storage
STORAGE_PAUSE_S = 5.0
MAX_ROUNDS = 1000  # of fit(); each begins where the one before ended

FATAL = (JobError, TrainingError, DataError, ModelError)  # would only happen again


def train_with_retries(
    fit: Callable[[int], None],
    *,
    is_done: Callable[[], bool],
    check_storage: Callable[[], None],
    max_failures: int,
    log: Callable[[str], None],
) -> None:
    """fit: trains with a new worker group in round 0, 1, ... until done or asked to leave.
    is_done: whether the last step is done. check_storage: raises StoreError while it is away.

    Raises TrainingError: what a worker said, or that max_failures were not enough; ServiceError:
    the storage or the room for the ranks did not come back.
    """
    failures = 0
    for number in range(MAX_ROUNDS):
        try:
            fit(number)
        except TrainingFailedError as error:
            words = _words(error)
            roll_back = [word for word in words if isinstance(word, Rollback)]
            if roll_back:
                log(f"{roll_back[0]}; going on from the checkpoint before it, without that step")
            elif any(isinstance(word, FATAL) for word in words):
                raise told(error) from error
            elif _is_storage(error, words):
                log(f"training lost its storage ({str(words[0] if words else error)[:120]})")
                _wait(check_storage)
                log("the storage answers; going on from the newest checkpoint")
            elif _is_no_room(error):
                log("a node that the ranks were to start on is gone or taken; looking again")
            elif _is_taken(error):
                log("a node was taken away as announced; going on from the newest checkpoint")
            else:
                failures += 1
                if failures > max_failures:
                    raise told(error) from error
                log(f"{describe_failure(error)}; restart {failures} of {max_failures}")
        else:
            if is_done():
                return
    raise TrainingError(
        f"cluster: got {MAX_ROUNDS} worker groups without an end; something takes them away as "
        "fast as they start. See Ray's logs, then `rayception resume`."
    )


def told(error: TrainingFailedError) -> RayceptionError:
    """One line for what made fit() fail: the first rank's own words where they are ours."""
    for word in _words(error):
        return word if isinstance(word, RayceptionError) else TrainingError(str(word))
    return TrainingError(
        f"{describe_failure(error)}; training ended after its allowed restarts. See the worker "
        "logs, or --debug."
    )


def own_word(error: BaseException | None) -> BaseException | None:
    """The error of ours among an error's causes, if there is one."""
    while error is not None:
        if isinstance(error, EXPECTED_ERRORS):
            return error
        error = (
            error.__cause__ or getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        )
    return None


def _failures(error: TrainingFailedError) -> dict[int, BaseException]:
    found: dict[int, BaseException] = getattr(error, "worker_failures", {}) or {}
    return dict(sorted(found.items()))


def describe_failure(error: TrainingFailedError) -> str:
    """`rank 1: got ...`. A dead actor's is the cause, not what the others say of its absence."""
    failures = _failures(error)
    dead = [rank for rank, one in failures.items() if _death(one) is not None]
    rank = dead[0] if dead else next(iter(failures), None)
    if dead:
        return f"rank {rank}: got a worker or node that died"
    first: BaseException = error if rank is None else failures[rank]
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    where = "training" if rank is None else f"rank {rank}"
    return f"{where}: got {lines[-1].strip()[:300] if lines else type(first).__name__}"


def _words(error: TrainingFailedError) -> list[BaseException]:
    """Everything of ours that made fit() fail, by rank."""
    causes = [*_failures(error).values(), getattr(error, "controller_failure", None)]
    return [word for cause in causes if (word := own_word(cause)) is not None]


def _is_storage(error: TrainingFailedError, words: list[BaseException]) -> bool:
    """Whether storage made fit() fail: a worker said so, or Ray's controller could not write its
    snapshot (pyarrow's OSError)."""
    if any(isinstance(word, StoreError) and not isinstance(word, LoaderError) for word in words):
        return True
    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, OSError) or isinstance(getattr(failure, "cause", None), OSError)


def _is_no_room(error: TrainingFailedError) -> bool:
    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _is_taken(error: TrainingFailedError) -> bool:
    """Whether a rank died of its node's announced end."""
    deaths = [_death(one) for one in _failures(error).values()]
    return any(death is not None and death.preempted for death in deaths)


def _death(error: BaseException) -> RayActorError | None:
    """What Ray says of a dead worker process, itself or inside its health check's error."""
    for one in (error, getattr(error, "health_check_failure", None), error.__cause__):
        if isinstance(one, RayActorError):
            return one
    return None


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
