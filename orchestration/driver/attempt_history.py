"""The driver's record of a run: its attempts in storage and in MLflow, and what its nodes are busy
with, looked at every ten seconds beside training."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.train import TrainingFailedError

from datasets.errors import StoreError
from datasets.storage.store import Store
from orchestration.driver.retry_policy import describe_failure
from orchestration.errors import LeaseLost
from orchestration.job.job import Job
from orchestration.run.phases import PHASES, STARTUP, Phases, split
from orchestration.run.timeline import (
    TIMELINE_FILE,
    UNKNOWN,
    Attempt,
    goodput,
    load_attempts,
    rank_hours,
    to_json,
)
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)

LEFT, DONE = "it left after a checkpoint", "done"
LOOK_EVERY_S = 10.0
SAVE_EVERY_S = 30.0
BOARD_LIMIT_S = 10.0


class AttemptHistory:
    """One driver's; it goes on where an earlier driver of the run ended."""

    def __init__(
        self,
        job: Job,
        store: Store,
        run: RunRef,
        run_url: str,
        progress_actor: Any,
        phases: Phases,
        check_lease: Callable[[], None],
    ) -> None:
        """phases: of the driver, which goes on to count them. still_ours: raises TakenOver once the
        run is another driver's, whose record it is then. Raises StoreError."""
        self._job, self._store, self._progress_actor, self._check_lease = (
            job,
            store,
            progress_actor,
            check_lease,
        )
        self._run_url, self._phases = run_url, phases
        self._startup = dict(phases.seconds)  # for the first attempt of this driver
        self._of_ranks: dict[str, float] = {}  # of its attempts that have ended
        self._told_start = 0  # attempts whose start MLflow has heard of
        self._url = f"{run_url}/{TIMELINE_FILE}"
        self.attempts = self._earlier()
        self._is_first = True
        self._writer = MetricWriter(run, Outbox(store, run_url), "driver")
        self._lock = threading.Lock()  # of a whole look
        self._saved_at = 0.0
        self._done = threading.Event()
        self._looks = threading.Thread(target=self._look_on, name="chronicle", daemon=True)
        self._looks.start()

    @contextlib.contextmanager
    def attempt(self, ranks: int) -> Iterator[None]:
        """Keeps the record of one worker group for the block; how it ended is what it raised, or
        that it did not."""
        now = time.time()
        with self._lock:
            if self._is_first:  # a driver that was taken over has just written its last record
                with contextlib.suppress(StoreError):
                    self.attempts = self._earlier()
                self._is_first = False
            last = self.attempts[-1].to_step if self.attempts else 0
            self.attempts.append(
                Attempt(
                    began=now, ended=now, ranks=ranks, from_step=last, to_step=last, trained_s=0.0,
                    ended_by="", phases=self._startup,
                )
            )  # fmt: skip
            self._startup = {}
        ended_by = LEFT
        try:
            yield
        except BaseException as error:
            ended_by = _words(error)
            raise
        finally:
            with self._lock:
                self._look(ended_by)
            self._save()

    def _earlier(self) -> list[Attempt]:
        return [
            replace(one, ended_by=one.ended_by or UNKNOWN)
            for one in load_attempts(self._store, self._run_url)
        ]

    def close(self) -> None:
        """Sends what is left. Raises StoreError where it can be neither sent nor kept."""
        self._done.set()
        self._looks.join(2 * BOARD_LIMIT_S)
        self._writer.close()

    def _look_on(self) -> None:
        """Also between worker groups, so that a run that waits is told from one that is dead."""
        while not self._done.wait(LOOK_EVERY_S):
            with self._lock:
                if self.attempts and not self.attempts[-1].ended_by:
                    self._look("")
                else:
                    self._tell()
            try:
                self._check_lease()
            except LeaseLost:
                return
            if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self._save()

    def _look(self, ended_by: str) -> None:
        """Asks the board how far the ranks are, and logs what follows."""
        try:
            progress = ray.get(self._progress_actor.read.remote(), timeout=BOARD_LIMIT_S)
            system_metrics = ray.get(
                self._progress_actor.take_system_metrics.remote(), timeout=BOARD_LIMIT_S
            )
            spent = ray.get(self._progress_actor.phases.remote(), timeout=BOARD_LIMIT_S)
        except ray.exceptions.RayError:  # the cluster is going down
            progress, system_metrics, spent = None, [], {}
        one = self.attempts[-1]
        one = replace(one, ended=time.time(), ended_by=ended_by, phases=one.phases | spent)
        if ended_by:
            for name, seconds in spent.items():
                self._of_ranks[name] = self._of_ranks.get(name, 0.0) + seconds
        if progress is not None:
            one = replace(
                one, from_step=progress["from_step"], to_step=progress["step"],
                trained_s=progress["trained_s"],
            )  # fmt: skip
            if ended_by == LEFT and progress["step"] == progress["total_steps"]:
                one = replace(one, ended_by=DONE)
            self._tell_start(one)
        self.attempts[-1] = one
        self._tell()
        for node, at, values in system_metrics:
            told = {f"system/{node}/{name}": value for name, value in values.items()}
            self._writer.log(self._second(at), told)

    def _tell(self) -> None:
        if not self.attempts:
            return
        hours = rank_hours(self.attempts)
        told = {"run/goodput": goodput(self.attempts), "run/rank_hours": hours}
        price = self._job.cluster.price_of(self._job.cluster.accelerator)
        if price is not None:
            told["run/dollars"] = hours * price
        self._writer.log(self._second(time.time()), told)

    def _tell_start(self, one: Attempt) -> None:
        """What the start of an attempt cost, once its ranks train; the step is its number."""
        number = len(self.attempts)
        if number > self._told_start:
            self._told_start = number
            told = {
                f"startup/{name}_seconds": s for name, s in one.phases.items() if name in STARTUP
            }
            self._writer.log(number, told)

    def phases(self) -> dict[str, float]:
        """Seconds by phase of this driver and of its ranks."""
        found = dict(self._phases.seconds)
        found |= split(found.pop("training", 0.0), self._of_ranks)
        return {name: found[name] for name in PHASES if name in found}

    def _second(self, at: float) -> int:
        """The step of what is no step's: seconds since the run's first attempt began."""
        return int(at - self.attempts[0].began)

    def _save(self) -> None:
        try:
            self._store.write(self._url, to_json(self.attempts))
            self._saved_at = time.monotonic()
        except StoreError as error:
            logger.warning("the run's timeline waits: %s", error)


def _words(error: BaseException) -> str:
    if isinstance(error, TrainingFailedError):
        return describe_failure(error)
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
