"""One run, from a connected cluster to its outcome: MLflow run -> TorchTrainer.fit() -> model.

The driver owns the MLflow run and sets its final status whatever happens; workers only send
metrics. It runs where it was started: for `rayception run` on this machine.
"""

import contextlib
import datetime
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from datasets.errors import StoreError
from datasets.manifest import Manifest
from datasets.store import Store, StoreConfig
from orchestration.checkout import read_checkout
from orchestration.checkpoint import TrainState, save_checkpoint
from orchestration.chronicle import Chronicle
from orchestration.conclude import FINISHED, conclude_run, end_run
from orchestration.errors import JobError, ServiceError
from orchestration.introduce import (
    datasets_of,
    params_of,
    reproduce,
    send_samples,
    submission_tags,
    tags_of,
)
from orchestration.job import Job
from orchestration.job_places import LOCAL
from orchestration.load import to_dict, to_yaml
from orchestration.local import Say
from orchestration.metrics import top1_of
from orchestration.plan import Plan, make_plan
from orchestration.preflight import (
    check_imports,
    check_init,
    check_storage,
    look_before,
    prepare_data,
)
from orchestration.progress import make_board
from orchestration.room import choose, look, settle
from orchestration.rounds import train_run
from orchestration.run_record import RUN_FILE, Earlier, RunRecord, find_earlier, save_record
from orchestration.stack import Stack
from orchestration.storage import build_store_config, shard_shape
from orchestration.timeline import tags_of as tags_of_life
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.runs import (
    RunRef,
    child_tags,
    log_datasets,
    log_text,
    open_run,
    reopen_run,
    run_status,
)
from orchestration.worker import Assignment

Watch = Callable[[Any, Plan], Any]


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

    @property
    def top1(self) -> float:
        """Percent of the held-out split, of the averaged weights where an average is kept."""
        found = top1_of(self.metrics)
        return float("nan") if found is None else found


@contextlib.contextmanager
def connected(job: Job, stack: Stack | None) -> Iterator[None]:
    """Joins the job's cluster for the block. Workers' output goes to Ray's logs, not here.

    Raises ServiceError where there is no cluster or it does not answer.
    """
    with joined(stack.ray_address if job.cluster.address == LOCAL and stack else "auto"):
        yield


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Joins the cluster at an address, `auto` for this machine's, for the block. Raises
    ServiceError."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ServiceError(
            f"cluster.address: got {address}; no Ray cluster answers there ({first}). "
            "Start one with `ray start`, or write cluster.address=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def tracking_uri(job: Job, stack: Stack | None) -> str:
    """Where the job's MLflow server answers."""
    return stack.mlflow_url if job.tracking.uri == LOCAL and stack else job.tracking.uri


def run_of(record: RunRecord, job: Job, stack: Stack | None) -> RunRef:
    """A recorded run's place in MLflow."""
    uri = tracking_uri(job, stack)
    return RunRef(uri=uri, experiment_id=record.experiment_id, run_id=record.run_id)


def _go_on(
    job: Job,
    stack: Stack | None,
    store: Store,
    earlier: Earlier,
    tags: dict[str, str],
    say: Say,
) -> RunRef:
    """Opens an earlier run again, also without MLflow's help where it is away. Raises JobError
    where the run is complete; StoreError."""
    run = run_of(earlier.record, job, stack)
    outbox = Outbox(store, earlier.url)
    end = outbox.end()  # that MLflow has not heard of
    try:
        status = run_status(run) if end is None else end[0]
        if status == FINISHED:
            raise JobError(
                f"{earlier.url}: got a run that is complete; there is nothing to go on with. "
                "`rayception fork` it, with more epochs or another recipe."
            )
        outbox.forget_end()
        reopen_run(run, tags=tags)
    except ServiceError as error:
        say(f"note: {error}")
        say("going on; what MLflow is to have is kept in storage until it answers")
    return run


def drive(
    job: Job,
    *,
    stack: Stack | None,
    say: Say,
    watch: Watch,
    parent: tuple[RunRef, str] | None = None,
    earlier: Earlier | None = None,
    start_from: TrainState | None = None,
    name: str | None = None,
) -> Outcome:
    """Trains the job on the connected cluster.

    parent: the sweep's run and the name of this one in it. earlier: the run to go on with.
    start_from: the state that a new run begins with. name: the run's; one of that name that has
    begun goes on, so that whoever restarts a driver starts it as before. say: called with a line
    for each thing done. watch: called with the progress actor and the plan, returns a context
    manager that shows them. Raises RayceptionError, DataError, StoreError, or KeyboardInterrupt.
    """
    began = time.monotonic()
    given = job  # with every accelerator that the run may get; `job` has the one that it got
    config = build_store_config(job, stack)
    store = Store(config)
    if name is not None and store.exists(f"{_url_of(job, name)}/{RUN_FILE}"):
        earlier = find_earlier(store, _url_of(job, name), job)
    job, plan, train, val = _prepare(job, stack, store, config, earlier is not None, say)
    # What a run that goes on has to add; said at once, and again at its end: MLflow may be away.
    told = {} if earlier is None else earlier.changed | submission_tags()
    if earlier is None:
        run_name, run_url, run = _begin(given, job, store, stack, plan, train, val, parent, name)
    else:
        run_name, run_url = earlier.record.name, earlier.url
        run = _go_on(job, stack, store, earlier, told, say)
    if start_from is not None:
        save_checkpoint(store, run_url, start_from)
    say(f"run {run_name} in MLflow experiment {job.experiment}")
    if earlier is None:  # beside training; a picture is worth no wait
        looks = (job, plan, store, train, run, run_url)
        threading.Thread(target=send_samples, args=looks, name="samples", daemon=True).start()
    board = make_board()
    chronicle = Chronicle(job, store, run, run_url, board)
    try:
        hand = Assignment(
            job=to_dict(job), plan=plan, run=run, run_url=run_url, store=config, board=board,
            attempt=0,
        )  # fmt: skip
        with watch(board, plan):
            checkpoint_url, state = train_run(job, hand, store, chronicle, say)
        say("training done; logging the model")
        chronicle.close()
        tags = told | tags_of_life(chronicle.attempts)
        model_uri = conclude_run(job, store, run, run_url, state, tags, say)
        attempts = int(ray.get(board.count_attempts.remote(), timeout=30))
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(StoreError):  # what went wrong first is what is told
            chronicle.close()
            end_run(store, run, run_url, status, told | tags_of_life(chronicle.attempts))
        raise
    return Outcome(
        run=run,
        run_name=run_name,
        metrics={key: value for key, value in state.metrics.items() if "/" in key},
        images_per_second=state.metrics["images_per_second"],
        attempts=attempts,
        checkpoint_url=checkpoint_url,
        model_uri=model_uri,
        wall_s=time.monotonic() - began,
    )


def _prepare(
    job: Job, stack: Stack | None, store: Store, config: StoreConfig, has_begun: bool, say: Say
) -> tuple[Job, Plan, Manifest, Manifest]:
    """What must hold before anything is written: data, plan and cluster; the job on the
    accelerator that it gets. has_begun: the run is in MLflow, which may be away now."""
    check_imports()
    choose(job, look())  # what there can never be is said first
    if job.cluster.address != LOCAL:  # one machine has just asked itself
        checks, notes = look_before(job, store, config, tracking_uri(job, stack))
        for check in checks:
            if check.problem is not None and not (has_begun and check.name == "tracking"):
                raise check.problem
        for note in notes:
            say(f"note: {note}")
    job, _ = settle(job, look, say=say, limit_s=job.cluster.wait_s)
    check_init(job, store)
    train, val = prepare_data(job, store, say)
    plan = make_plan(
        job,
        train_samples=train.num_samples,
        val_samples=val.num_samples,
        shape=shard_shape(train),
    )
    return job, plan, train, val


def _url_of(job: Job, run_name: str) -> str:
    return f"{job.checkpoint.storage.rstrip('/')}/{run_name}"


def _begin(
    job: Job,
    on: Job,
    store: Store,
    stack: Stack | None,
    plan: Plan,
    train: Manifest,
    val: Manifest,
    parent: tuple[RunRef, str] | None,
    name: str | None,
) -> tuple[str, str, RunRef]:
    """A new run: (its name, its folder in storage, its place in MLflow). on: the job with the
    accelerator that it got."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    run_name = name or f"{job.name}-{stamp}-{secrets.token_hex(2)}"
    run_url = _url_of(job, run_name)
    check_storage(store, run_url)
    code = read_checkout()
    run = open_run(
        tracking_uri(job, stack),
        experiment=job.experiment,
        name=run_name,
        params=params_of(job, plan),
        tags=tags_of(on, plan, train, run_url, code)
        | (child_tags(*parent) if parent is not None else {}),
    )
    record = RunRecord(
        name=run_name,
        job=to_dict(job),
        classes=list(train.classes),
        experiment_id=run.experiment_id,
        run_id=run.run_id,
    )
    save_record(store, run_url, record)
    log_datasets(run, datasets_of(job, train, val))
    log_text(run, to_yaml(job), "job.yaml")
    log_text(run, reproduce(run_url, code), "reproduce.sh")
    if code.diff:
        log_text(run, code.diff, "code.diff")
    return run_name, run_url, run
