"""The driver's own work while its ranks train, so that nobody waits for it when the run ends.

After the ranks' first step it plots the first training samples and imports what the end needs
(torch, matplotlib): earlier, on a machine with few cores, this would delay the ranks' start. After
their last evaluation it sends the evaluation of the validation split and the learning curves, while
rank 0 writes the final network.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import ray

from datasets.shards.manifest import Manifest
from orchestration.driver.run import Run
from orchestration.errors import EXPECTED_ERRORS
from orchestration.job.plan import Plan
from orchestration.run.progress import Progress
from orchestration.tracking.runs import send_file

logger = logging.getLogger(__name__)

POLL_EVERY_S = 0.5
FINISH_LIMIT_S = 120.0  # each request has a limit of its own, of seconds


class Preparation:
    """One run's, in a thread for the block. has_sent_evaluation, has_sent_curves: to MLflow or to
    the outbox."""

    def __init__(
        self, run: Run, plan: Plan, progress_actor: Any, *, samples: Manifest | None
    ) -> None:
        """samples: the training split, if its first samples are to be plotted."""
        self._run, self._plan, self._progress_actor = run, plan, progress_actor
        self._samples = samples
        self._done = threading.Event()
        self.has_sent_evaluation = self.has_sent_curves = False
        self._thread = threading.Thread(target=self._work, name="preparation", daemon=True)

    def __enter__(self) -> "Preparation":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def finish(self) -> None:
        """To be called after training; waits up to FINISH_LIMIT_S for work in progress."""
        self._done.set()
        self._thread.join(FINISH_LIMIT_S)
        if self._thread.is_alive():
            logger.warning("not sent yet: still busy after %.0f s", FINISH_LIMIT_S)

    def _work(self) -> None:
        if not self._wait_for(lambda progress: True):
            return
        from orchestration.driver.run_end import log_curves, send_evaluation
        from orchestration.report.run_report import plot_samples

        run, plan = self._run, self._plan
        try:
            if self._samples is not None:
                picture = plot_samples(run.job, plan, run.store, self._samples)
                send_file(run.mlflow, run.outbox, "pictures/training-samples.png", picture)
        except EXPECTED_ERRORS as error:  # no reason to end a run
            logger.warning("no picture of the first training samples: %s", error)
        try:
            if self._wait_for(self._is_evaluated):
                send_evaluation(run)
                self.has_sent_evaluation = True
                self.has_sent_curves = log_curves(run.mlflow, until=plan.total_steps)
        except EXPECTED_ERRORS as error:  # the run's end tries again, and raises
            logger.warning("not sent yet: %s", error)

    def _wait_for(self, is_true: Callable[[Progress], bool]) -> bool:
        """Waits until is_true(the ranks' progress); -> False if training ends first."""
        while not self._done.wait(POLL_EVERY_S):
            with contextlib.suppress(ray.exceptions.RayError):
                progress = ray.get(self._progress_actor.read.remote(), timeout=10)
                if progress is not None and is_true(progress):
                    return True
        return False

    def _is_evaluated(self, progress: Progress) -> bool:
        return progress["step"] == self._plan.total_steps and progress["is_evaluated"]
