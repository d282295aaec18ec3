"""What a driver hands on: the request, the run, and the data that its plan follows from."""

import datetime
import secrets
from dataclasses import dataclass

from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.plan import Plan
from orchestration.run.checkpoint import Checkpoint
from orchestration.run.record import ResumedRun, RunRecord
from orchestration.stack.state import Stack
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef


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
class Request:
    """A run to drive.

    parent: the sweep's run and this run's key in it. resumed: the run to go on with. start_from:
    the checkpoint that a new run begins with. name: the run's; a run of that name that has begun is
    resumed, so that whoever restarts a driver calls it with the same arguments.
    """

    job: Job
    parent: tuple[RunRef, str] | None = None
    resumed: ResumedRun | None = None
    start_from: Checkpoint | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedData:
    """A run's plan and the two splits that it follows from."""

    plan: Plan
    train: Manifest
    val: Manifest


def tracking_uri(job: Job, stack: Stack | None) -> str:
    """The URI of the job's MLflow server."""
    return stack.url("mlflow") if job.tracking.uri == LOCAL and stack else job.tracking.uri


def run_ref_of(record: RunRecord, job: Job, stack: Stack | None) -> RunRef:
    """The MLflow run of a record."""
    uri = tracking_uri(job, stack)
    return RunRef(uri=uri, experiment_id=record.experiment_id, run_id=record.run_id)


def fresh_name(job: Job) -> str:
    """A unique run name: the job's, the time and a random suffix."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{job.name}-{stamp}-{secrets.token_hex(2)}"
