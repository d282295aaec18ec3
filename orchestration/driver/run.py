"""One run as its driver sees it, and how it ends when it is not complete."""

import contextlib
from dataclasses import dataclass

from datasets.errors import StoreError
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from orchestration.errors import ServiceError
from orchestration.job.job import Job
from orchestration.job.plan import Plan
from orchestration.run.checkpoint import checkpoint_tags
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import close_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """job: on the accelerator that it got. url: the run's folder in storage."""

    job: Job
    store: Store
    url: str
    mlflow: RunRef

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def outbox(self) -> Outbox:
        """What MLflow has not received yet."""
        return Outbox(self.store, self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedData:
    """A run's plan and the two splits that it follows from."""

    plan: Plan
    train: Manifest
    val: Manifest


def abort_run(run: Run, status: str, tags: dict[str, str]) -> None:
    """Ends an incomplete run in MLflow, FAILED or KILLED, with plots of what it did.

    The status is set whatever else fails: unreachable storage may be what ended the run. While
    MLflow is unreachable, the outbox keeps it. Raises StoreError if storage is unreachable as well.
    """
    with contextlib.suppress(StoreError):
        tags = tags | checkpoint_tags(run.store, run.url)
    try:
        close_run(run.mlflow, status, tags)
    except ServiceError:
        run.outbox.set_end(status, tags)
        return
    # Imports matplotlib: only now, because whoever stops a run may not wait long.
    from orchestration.driver.run_end import log_plots

    with contextlib.suppress(ServiceError, StoreError):
        log_plots(run)
