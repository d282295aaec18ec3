"""One run, from a connected cluster to its outcome: MLflow run -> TorchTrainer.fit() -> model.

The driver owns the MLflow run and sets its final status whatever happens; workers only send
metrics. It runs where it was started: for `rayception run` on this machine. A run that another
driver has taken over is that one's to end.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets.errors import StoreError
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.capacity import choose_accelerator, read_nodes, wait_for_capacity
from orchestration.cluster.preflight import check_imports, check_init, look_before, prepare_data
from orchestration.driver.attempt_history import AttemptHistory
from orchestration.driver.attempts import train_run
from orchestration.driver.preparation import Preparation
from orchestration.driver.run_abort import abort_run
from orchestration.driver.run_start import (
    Start,
    fresh_name,
    resume_run,
    run_of,
    start_run,
    status_before,
    submission_tags,
    tags_of,
    tracking_uri,
)
from orchestration.errors import LeaseLost
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.load import to_dict
from orchestration.job.plan import Plan, make_plan
from orchestration.run.checkpoint import Checkpoint
from orchestration.run.lease import check_claim, make_claim, save_claim
from orchestration.run.metrics import top1_of
from orchestration.run.phases import Phases
from orchestration.run.record import RUN_FILE, ResumedRun, find_resumed
from orchestration.run.storage import build_store_config, shard_shape
from orchestration.run.timeline import lifetime_tags
from orchestration.stack.local import Log
from orchestration.stack.state import Stack
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import child_tags, status_of
from orchestration.worker.progress_actor import start_progress_actor
from orchestration.worker.worker_config import WorkerConfig

Watch = Callable[[Any, Plan], Any]
HAND_OVER_S = 60.0  # what a driver that was taken over holds is free within


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a finished run says of itself."""

    run: RunRef
    run_name: str
    metrics: dict[str, float]
    images_per_second: float
    attempts: int
    checkpoint_url: str
    model_uri: str | None  # None: MLflow was away at the end
    wall_s: float
    phases: dict[str, float]  # seconds, of PHASES

    @property
    def top1(self) -> float:
        """Percent of the held-out split, of the averaged weights where an average is kept."""
        found = top1_of(self.metrics)
        return float("nan") if found is None else found


def drive(
    job: Job,
    *,
    stack: Stack | None,
    log: Log,
    watch: Watch,
    parent: tuple[RunRef, str] | None = None,
    earlier: ResumedRun | None = None,
    start_from: Checkpoint | None = None,
    name: str | None = None,
    phases: Phases | None = None,
) -> Outcome:
    """Trains the job on the connected cluster.

    parent: the sweep's run and the name of this one in it. earlier: the run to go on with.
    start_from: the state that a new run begins with. name: the run's; one of that name that has
    begun goes on, so that whoever restarts a driver starts it as before. phases: of this process so
    far. say: called with a line for each thing done. watch: called with the progress actor and the
    plan, returns a context manager that shows them. Raises RayceptionError, DataError, StoreError,
    or KeyboardInterrupt.
    """
    began = time.monotonic()
    phases = phases or Phases()
    given = job  # with every accelerator that the run may get; `job` has the one that it got
    store_config = build_store_config(job, stack)
    store = Store(store_config)
    run_name = name or fresh_name(job)
    run_url = f"{job.checkpoint.storage.rstrip('/')}/{run_name}"
    if earlier is None and name is not None and store.exists(f"{run_url}/{RUN_FILE}"):
        earlier = find_resumed(store, run_url, job)
    if earlier is not None:
        run_name, run_url = earlier.record.name, earlier.url
    _check_first(job, stack, store, store_config, earlier is not None, log)
    # What a run that goes on has to add; said at once, and again at its end: MLflow may be away.
    told = {} if earlier is None else earlier.changed | submission_tags()
    claim = make_claim()
    check_lease = partial(check_claim, store, run_url, claim)
    run: RunRef | None = None
    wait_s: float = job.cluster.wait_s
    if earlier is not None:  # before the wait for room, which its driver may still hold
        run = run_of(earlier.record, job, stack)
        if status_before(run, store, earlier) in ("RUNNING", ""):
            wait_s = max(wait_s, HAND_OVER_S)
        save_claim(store, run_url, claim)
    history: AttemptHistory | None = None
    try:
        job, plan, train, val = _prepare(job, store, wait_s, log)
        phases.end("preflight")
        if earlier is None or run is None:
            tags = tags_of(job, plan, train, run_url) | (child_tags(*parent) if parent else {})
            start = Start(name=run_name, url=run_url, tags=tags, state=start_from)
            run = start_run(given, start, tracking_uri(job, stack), store, claim, plan, train, val)
        else:
            resume_run(run, store, earlier, told, log)
        phases.end("mlflow")
        log(f"run {run_name} in MLflow experiment {job.experiment}")
        progress_actor = start_progress_actor()
        history = AttemptHistory(job, store, run, run_url, progress_actor, phases, check_lease)
        config = WorkerConfig(
            job=to_dict(job), plan=plan, run=run, run_url=run_url, store=store_config, progress_actor=progress_actor,
            attempt=0,
        )  # fmt: skip
        samples = train if earlier is None else None
        with Preparation(
            job, plan, store, run, run_url, progress_actor, samples=samples
        ) as prepared:
            with watch(progress_actor, plan):
                last = train_run(job, config, store, history, check_lease, log)
            check_lease()
            phases.end("training")
            log(
                f"training done, top-1 {last.top1:.2f} %, checkpoint {last.url}; pictures and the "
                "model go to MLflow"
            )
            history.close()
            told |= lifetime_tags(history.attempts)
            sent = prepared.finish()
            from orchestration.driver.run_end import (
                finalize_run,  # torch: imported while ranks trained
            )

            model_uri = finalize_run(job, store, run, run_url, last, told, log, sent=sent)
    except BaseException as error:
        # What went wrong first is what is told.
        if history is not None:
            with contextlib.suppress(StoreError):
                history.close()
            told |= lifetime_tags(history.attempts)
        if run is not None:
            with contextlib.suppress(StoreError, LeaseLost):
                check_lease()  # what another driver goes on with has not ended
                abort_run(store, run, run_url, status_of(error), told)
        raise
    phases.end("end")
    return Outcome(
        run=run,
        run_name=run_name,
        metrics={key: value for key, value in last.metrics.items() if "/" in key},
        images_per_second=last.metrics["images_per_second"],
        attempts=len(history.attempts),
        checkpoint_url=last.url,
        model_uri=model_uri,
        wall_s=time.monotonic() - began,
        phases=history.phases(),
    )


def _check_first(
    job: Job,
    stack: Stack | None,
    store: Store,
    store_config: StoreConfig,
    has_begun: bool,
    log: Log,
) -> None:
    """What must hold before anything is waited for or written. has_begun: the run is in MLflow,
    which may be away now. Raises RayceptionError, DataError, StoreError."""
    check_imports()
    choose_accelerator(job, read_nodes())  # what there can never be is said first
    if job.cluster.address == LOCAL:  # one machine has just asked itself
        return
    checks, notes = look_before(job, store, store_config, tracking_uri(job, stack))
    for check in checks:
        if check.problem is not None:
            if not (has_begun and check.name == "tracking"):
                raise check.problem
            notes.append(str(check.problem))
    for note in notes:
        log(f"note: {note}")


def _prepare(
    job: Job, store: Store, wait_s: float, log: Log
) -> tuple[Job, Plan, Manifest, Manifest]:
    """Room on the cluster, data and plan; the job on the accelerator that it gets."""
    job, _ = wait_for_capacity(job, read_nodes, log=log, limit_s=wait_s)
    check_init(job, store)
    train, val = prepare_data(job, store, log)
    plan = make_plan(
        job,
        train_samples=train.num_samples,
        val_samples=val.num_samples,
        shape=shard_shape(train),
    )
    return job, plan, train, val
