"""The driver's record of a run's attempts, in storage and in MLflow; every ten seconds it also logs
goodput, cost and the nodes' system metrics."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ray
from ray.train import TrainingFailedError

from datasets.errors import StoreError
from orchestration.driver.retry_policy import describe_failure
from orchestration.driver.run import Run
from orchestration.errors import LeaseLost
from orchestration.run import timeline
from orchestration.run.lease import Lease
from orchestration.run.phases import PHASES, STARTUP, Phases, split_training
from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)

STOPPED, DONE = "it left after a checkpoint", "done"  # as in the timelines of earlier runs
UPDATE_EVERY_S = 10.0
SAVE_EVERY_S = 30.0
ANSWER_LIMIT_S = 10.0


class AttemptHistory:
    """The record of one driver; it continues that of the run's earlier drivers."""

    def __init__(self, run: Run, lease: Lease, progress_actor: Any, phases: Phases) -> None:
        """lease: once it is lost, the record belongs to another driver. phases: of the driver,
        which keeps counting them. Raises StoreError."""
        self._run, self._lease, self._progress_actor = run, lease, progress_actor
        self._phases = phases
        self._logged_startups = 0  # attempts whose startup MLflow has received
        self.attempts = self._load()
        self._num_earlier = len(self.attempts)  # of the drivers before
        self._writer = MetricWriter(run.mlflow, run.outbox, "driver")
        self._lock = threading.Lock()  # held for a whole update
        self._saved_at = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(
            target=self._update_regularly, name="attempt-history", daemon=True
        )
        self._thread.start()

    @contextlib.contextmanager
    def attempt(self, ranks: int) -> Iterator[None]:
        """Records one worker group for the block; the exception it raised, if any, is its end."""
        now = time.time()
        with self._lock:
            is_first = len(self.attempts) == self._num_earlier
            if is_first:  # the driver before may have saved until it noticed its lost lease
                with contextlib.suppress(StoreError):
                    self.attempts = self._load()
                self._num_earlier = len(self.attempts)
            step = self.attempts[-1].to_step if self.attempts else 0
            self.attempts.append(
                timeline.Attempt(
                    began=now, ended=now, ranks=ranks, from_step=step, to_step=step, trained_s=0.0,
                    ended_by="", phases=dict(self._phases.seconds) if is_first else {},
                )
            )  # fmt: skip
        ended_by = STOPPED
        try:
            yield
        except BaseException as error:
            ended_by = _describe(error)
            raise
        finally:
            with self._lock:
                self._update(ended_by)
            self._save()

    def close(self) -> None:
        """Sends what is left. Raises StoreError if it can neither be sent nor stored."""
        self._done.set()
        self._thread.join(2 * ANSWER_LIMIT_S)
        self._writer.close()

    def phases(self) -> dict[str, float]:
        """Seconds by phase, of this driver and its ranks."""
        seconds, own = dict(self._phases.seconds), self.attempts[self._num_earlier :]
        of_ranks = {name: sum(attempt.phases.get(name, 0.0) for attempt in own) for name in PHASES}
        seconds |= split_training(seconds.pop("training", 0.0), of_ranks)
        return {name: seconds[name] for name in PHASES if name in seconds}

    def _load(self) -> list[timeline.Attempt]:
        return [
            replace(attempt, ended_by=attempt.ended_by or timeline.UNKNOWN)
            for attempt in timeline.load_attempts(self._run.store, self._run.url)
        ]

    def _update_regularly(self) -> None:
        """Also between worker groups: shows that a waiting run is alive."""
        while not self._done.wait(UPDATE_EVERY_S):
            with self._lock:
                if self.attempts and not self.attempts[-1].ended_by:
                    self._update("")
                else:
                    self._log_totals()
            try:
                self._lease.check()
            except LeaseLost:
                return
            if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self._save()

    def _update(self, ended_by: str) -> None:
        """Reads the ranks' progress and logs what follows from it."""
        actor = self._progress_actor
        try:
            progress = ray.get(actor.read.remote(), timeout=ANSWER_LIMIT_S)
            samples = ray.get(actor.take_system_metrics.remote(), timeout=ANSWER_LIMIT_S)
            phases = ray.get(actor.phases.remote(), timeout=ANSWER_LIMIT_S)
        except ray.exceptions.RayError:  # the cluster is going down
            progress, samples, phases = None, [], {}
        attempt = self.attempts[-1]
        attempt = replace(
            attempt, ended=time.time(), ended_by=ended_by, phases=attempt.phases | phases
        )
        if progress is not None:
            attempt = replace(
                attempt, from_step=progress["from_step"], to_step=progress["step"],
                trained_s=progress["trained_s"], devices=progress["devices"],
            )  # fmt: skip
            if ended_by == STOPPED and progress["step"] == progress["total_steps"]:
                attempt = replace(attempt, ended_by=DONE)
            self._log_startup(attempt)
        self.attempts[-1] = attempt
        self._log_totals()
        for node, at, values in samples:
            metrics = {f"system/{node}/{name}": value for name, value in values.items()}
            self._writer.log(self._seconds_of_run(at), metrics)

    def _log_totals(self) -> None:
        if not self.attempts:
            return
        hours = timeline.rank_hours(self.attempts)
        metrics = {"run/goodput": timeline.goodput(self.attempts), "run/rank_hours": hours}
        cluster = self._run.job.cluster
        if (price := cluster.hourly_price(cluster.accelerator)) is not None:
            metrics["run/dollars"] = hours * price
        self._writer.log(self._seconds_of_run(time.time()), metrics)

    def _log_startup(self, attempt: timeline.Attempt) -> None:
        """Logs what an attempt's startup took once its ranks train; the step is its number."""
        number = len(self.attempts)
        if number > self._logged_startups:
            self._logged_startups = number
            metrics = {
                f"startup/{name}_seconds": seconds
                for name, seconds in attempt.phases.items()
                if name in STARTUP
            }
            self._writer.log(number, metrics)

    def _seconds_of_run(self, at: float) -> int:
        """The MLflow step of a metric that has no training step: seconds since the first attempt
        began. at: Unix time, seconds."""
        return int(at - self.attempts[0].began)

    def _save(self) -> None:
        try:
            timeline.save_attempts(self._run.store, self._run.url, self.attempts)
            self._saved_at = time.monotonic()
        except StoreError as error:
            logger.warning("the run's timeline is not saved yet: %s", error)


def _describe(error: BaseException) -> str:
    if isinstance(error, TrainingFailedError):
        return describe_failure(error)
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
