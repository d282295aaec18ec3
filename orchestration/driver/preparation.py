"""What a driver does while its ranks train, so that nobody waits for it at the run's end.

With the ranks' first step it sends a picture of the first samples and imports what the end needs
(torch, matplotlib): earlier, on a machine with few cores, that would hold up the ranks' start. With
their last evaluation it sends what the network said of the held-out split, and the run's curves;
rank 0 writes the final network meanwhile.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from datasets.shards.manifest import Manifest
from orchestration.driver.run import Run
from orchestration.errors import EXPECTED_ERRORS
from orchestration.job.plan import Plan
from orchestration.run.progress import Progress
from orchestration.tracking.runs import send_file

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
FINISH_LIMIT_S = 120.0  # each thing that is sent has a limit of its own, of seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What of a run's end MLflow has already."""

    evaluation: bool = False
    curves: bool = False


class Preparation:
    """One run's; a thread of the driver, for the block."""

    def __init__(
        self, run: Run, plan: Plan, progress_actor: Any, *, samples: Manifest | None
    ) -> None:
        """samples: the training split, if its first samples are to be shown."""
        self._run, self._plan, self._progress_actor = run, plan, progress_actor
        self._samples = samples
        self._is_over = threading.Event()
        self._sent = Sent()
        self._thread = threading.Thread(target=self._work, name="preparation", daemon=True)

    def __enter__(self) -> "Preparation":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()

    def finish(self) -> Sent:
        """Training has ended: waits for what was begun, but not for ever."""
        self._is_over.set()
        self._thread.join(FINISH_LIMIT_S)
        if self._thread.is_alive():
            logger.warning("not sent yet: no end of it within %.0f s", FINISH_LIMIT_S)
        return self._sent

    def _work(self) -> None:
        if not self._wait_for(lambda progress: True):
            return
        from orchestration.driver.run_end import log_curves, send_evaluation

        try:
            if self._samples is not None:
                self._send_samples(self._samples)
        except EXPECTED_ERRORS as error:  # a picture is no reason to end a run
            logger.warning("no picture of the first training samples: %s", error)
        try:
            if self._wait_for(self._is_evaluated):
                send_evaluation(self._run)
                self._sent = Sent(evaluation=True)
                has_curves = log_curves(self._run.mlflow, until=self._plan.total_steps)
                self._sent = Sent(evaluation=True, curves=has_curves)
        except EXPECTED_ERRORS as error:  # the run's end tries again, and says it
            logger.warning("not sent yet: %s", error)

    def _wait_for(self, is_true: Callable[[Progress], bool]) -> bool:
        """Whether it has become true of the ranks' progress; False once training is over."""
        while not self._is_over.wait(LOOK_EVERY_S):
            with contextlib.suppress(ray.exceptions.RayError):
                progress = ray.get(self._progress_actor.read.remote(), timeout=10)
                if progress is not None and is_true(progress):
                    return True
        return False

    def _is_evaluated(self, progress: Progress) -> bool:
        return progress["step"] == self._plan.total_steps and progress["is_evaluated"]

    def _send_samples(self, train: Manifest) -> None:
        from orchestration.report.run_report import of_samples

        run = self._run
        picture = of_samples(run.job, self._plan, run.store, train)
        send_file(run.mlflow, run.outbox, "pictures/training-samples.png", picture)
