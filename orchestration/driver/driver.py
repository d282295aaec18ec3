"""One run, from a connected cluster to its outcome: MLflow run -> worker groups -> model.

The driver owns the MLflow run and sets its final status whatever happens; workers only send
metrics. It runs where it was started: for `rayception run`, on this machine. Once another driver
has acquired the run's lease, ending the run is left to that one.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from datasets.errors import StoreError
from datasets.storage.store import Store
from orchestration.cluster.capacity import choose_accelerator, read_nodes, wait_for_capacity
from orchestration.cluster.preflight import check_imports, check_init, prepare_data, run_preflight
from orchestration.driver.attempt_history import AttemptHistory
from orchestration.driver.attempts import train_run
from orchestration.driver.preparation import Preparation
from orchestration.driver.run import (
    PlannedData,
    Request,
    Run,
    fresh_name,
    run_ref_of,
    tracking_uri,
)
from orchestration.driver.run_start import (
    abort_run,
    resume_run,
    start_run,
    status_before,
    submission_tags,
)
from orchestration.errors import LeaseLost
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.load import to_dict
from orchestration.job.plan import Plan, make_plan
from orchestration.run.lease import Lease
from orchestration.run.metrics import top1_of
from orchestration.run.phases import Phases
from orchestration.run.record import RUN_FILE, ResumedRun, find_resumed
from orchestration.run.storage import build_store_config, shard_shape
from orchestration.run.timeline import lifetime_tags
from orchestration.stack.local import Log
from orchestration.stack.state import Stack
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import status_of
from orchestration.worker.progress_actor import start_progress_actor
from orchestration.worker.worker_config import WorkerConfig

ShowProgress = Callable[[Any, Plan], contextlib.AbstractContextManager[None]]
FREED_WITHIN_S = 60.0  # what a driver that lost its lease holds is free again


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The results of a finished run."""

    run: RunRef
    run_name: str
    metrics: dict[str, float]
    images_per_second: float
    attempts: int
    checkpoint_url: str
    digest: str | None  # of that checkpoint
    model_uri: str | None  # None: MLflow was unreachable at the end
    wall_s: float
    phases: dict[str, float]  # seconds, of PHASES

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent on the validation split, of the averaged weights if an average
        is kept."""
        top1 = top1_of(self.metrics)
        return float("nan") if top1 is None else top1


def drive(
    request: Request,
    *,
    stack: Stack | None,
    log: Log,
    show_progress: ShowProgress,
    phases: Phases | None = None,
) -> Outcome:
    """Trains a job on the connected cluster.

    log: called with one line for each thing done. show_progress: called with the progress actor and
    the plan, returns a context manager. phases: of this process so far. Raises RayceptionError,
    DataError, StoreError, or KeyboardInterrupt.
    """
    started_at = time.monotonic()
    phases = phases or Phases()
    store = Store(build_store_config(request.job, stack))
    resumed = _find_resumed(request, store)
    _check_first(request.job, store, stack, resumed is not None, log)
    url = resumed.url if resumed else _folder(request.job, request.name or fresh_name(request.job))
    lease = Lease(store=store, run_url=url)
    # Tags that a resumed run gets: at once, and again at its end, as MLflow may be unreachable now.
    tags = resumed.changed | submission_tags() if resumed else {}
    run: Run | None = None
    wait_s: float = request.job.cluster.wait_s
    if resumed is not None:  # before waiting for capacity, which its last driver may still hold
        mlflow = run_ref_of(resumed.record, request.job, stack)
        run = Run(job=request.job, store=store, url=url, mlflow=mlflow)
        if status_before(run) in ("RUNNING", ""):
            wait_s = max(wait_s, FREED_WITHIN_S)
        lease.acquire()
    history: AttemptHistory | None = None
    try:
        job, data = _prepare(request.job, store, wait_s, log)
        phases.end("preflight")
        if run is None:
            run = start_run(request, job, data, lease, tracking_uri(job, stack))
        else:
            run = replace(run, job=job)
            resume_run(run, tags, log)
        phases.end("mlflow")
        log(f"run {run.name} in MLflow experiment {job.experiment}")
        actor = start_progress_actor()
        history = AttemptHistory(run, lease, actor, phases)
        config = WorkerConfig(
            job=to_dict(job), plan=data.plan, run=run.mlflow, run_url=url, store=store.config,
            progress_actor=actor, attempt=0,
        )  # fmt: skip
        samples = None if resumed else data.train
        with Preparation(run, data.plan, actor, samples=samples) as preparation:
            with show_progress(actor, data.plan):
                last = train_run(run, config, history, lease, log)
            lease.check()
            phases.end("training")
            log(
                f"training done, top-1 {last.top1:.2f} %, checkpoint {last.url}; pictures and the "
                "model go to MLflow"
            )
            history.close()
            tags |= lifetime_tags(history.attempts)
            preparation.finish()
            from orchestration.driver.run_end import finalize_run  # torch: imported by preparation

            model_uri = finalize_run(
                run,
                last,
                tags,
                log,
                has_sent_evaluation=preparation.has_sent_evaluation,
                has_sent_curves=preparation.has_sent_curves,
            )
    except BaseException as error:
        # Nothing here may replace the first error.
        if history is not None:
            with contextlib.suppress(StoreError):
                history.close()
            tags |= lifetime_tags(history.attempts)
        if run is not None:
            with contextlib.suppress(StoreError, LeaseLost):
                lease.check()  # otherwise another driver continues the run: it has not ended
                abort_run(run, status_of(error), tags)
        raise
    phases.end("end")
    return Outcome(
        run=run.mlflow,
        run_name=run.name,
        metrics={key: value for key, value in last.metrics.items() if "/" in key},
        images_per_second=last.metrics["images_per_second"],
        attempts=len(history.attempts),
        checkpoint_url=last.url,
        digest=last.digest,
        model_uri=model_uri,
        wall_s=time.monotonic() - started_at,
        phases=history.phases(),
    )


def _folder(job: Job, name: str) -> str:
    return f"{job.checkpoint.storage.rstrip('/')}/{name}"


def _find_resumed(request: Request, store: Store) -> ResumedRun | None:
    """The run to resume: as requested, or the one of the requested name if it has begun."""
    if request.resumed is not None or request.name is None:
        return request.resumed
    url = _folder(request.job, request.name)
    return find_resumed(store, url, request.job) if store.exists(f"{url}/{RUN_FILE}") else None


def _check_first(job: Job, store: Store, stack: Stack | None, has_begun: bool, log: Log) -> None:
    """Checks what must hold before anything is waited for or written. has_begun: the run is in
    MLflow, which may be unreachable now. Raises RayceptionError, DataError, StoreError."""
    check_imports()
    choose_accelerator(job, read_nodes())  # an impossible request is reported first
    if job.cluster.address == LOCAL:  # one machine has just checked itself
        return
    checks, notes = run_preflight(job, store, store.config, tracking_uri(job, stack))
    for check in checks:
        if check.problem is not None:
            if not (has_begun and check.name == "tracking"):
                raise check.problem
            notes.append(str(check.problem))
    for note in notes:
        log(f"note: {note}")


def _prepare(job: Job, store: Store, wait_s: float, log: Log) -> tuple[Job, PlannedData]:
    """Waits for capacity; -> the job on the accelerator that it gets, its data and plan."""
    job, _ = wait_for_capacity(job, read_nodes, log=log, limit_s=wait_s)
    check_init(job, store)
    train, val = prepare_data(job, store, log)
    plan = make_plan(
        job,
        train_samples=train.num_samples,
        val_samples=val.num_samples,
        shape=shard_shape(train),
    )
    return job, PlannedData(plan=plan, train=train, val=val)
