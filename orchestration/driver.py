"""One run, from a connected cluster to its outcome: MLflow run -> TorchTrainer.fit() -> model.

The driver owns the MLflow run and sets its final status whatever happens; workers only send
metrics. It runs where it was started: for `rayception run` on this machine.
"""

import contextlib
import datetime
import logging
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from datasets.loader import EvalLoader
from datasets.manifest import Manifest
from datasets.store import Store, StoreConfig
from inception.ema import WeightAverage
from inception.layers import normalize
from inception.network import build_network
from orchestration.checkpoint import load_checkpoint
from orchestration.errors import TOLD_IN_ONE_LINE, RayceptionError, ServiceError, TrainingError
from orchestration.job import Job
from orchestration.job_places import LOCAL
from orchestration.load import flatten, to_dict, to_yaml
from orchestration.local import Say
from orchestration.plan import Plan, build_job_architecture, make_plan
from orchestration.preflight import (
    check_cluster,
    check_imports,
    check_init,
    check_storage,
    prepare_data,
)
from orchestration.progress import make_board
from orchestration.run_record import RunRecord, save_record
from orchestration.stack import Stack
from orchestration.storage import build_store_config, ray_path, shard_shape
from orchestration.tracking import (
    RunRef,
    child_tags,
    close_run,
    log_model,
    log_text,
    open_run,
)
from orchestration.worker import Assignment, train_loop

# A rank that waits this long for another one has lost it.
COLLECTIVE_LIMIT_S = 300
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
    model_uri: str
    wall_s: float

    @property
    def top1(self) -> float:
        """Percent of the held-out split, of the averaged weights where an average is kept."""
        return self.metrics.get("val_ema/top1", self.metrics.get("val/top1", float("nan")))


@contextlib.contextmanager
def connected(job: Job, stack: Stack | None) -> Iterator[None]:
    """Joins the job's cluster for the block. Workers' output goes to Ray's logs, not here.

    Raises ServiceError where there is no cluster or it does not answer.
    """
    address = stack.ray_address if job.cluster.address == LOCAL and stack else "auto"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ServiceError(
            f"cluster.address: got {job.cluster.address}; no Ray cluster answers at {address} "
            f"({first}). Start one with `ray start`, or write cluster.address=local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def tracking_uri(job: Job, stack: Stack | None) -> str:
    """Where the job's MLflow server answers."""
    return stack.mlflow_url if job.tracking.uri == LOCAL and stack else job.tracking.uri


def drive(
    job: Job,
    *,
    stack: Stack | None,
    say: Say,
    watch: Watch,
    parent: tuple[RunRef, str] | None = None,
) -> Outcome:
    """Trains the job on the connected cluster.

    parent: the sweep's run and the name of this one in it. say: called with a line for each thing
    done. watch: called with the progress actor and the plan, returns a context manager that shows
    them. Raises RayceptionError, DataError, StoreError, or KeyboardInterrupt.
    """
    began = time.monotonic()
    check_imports()
    config = build_store_config(job, stack)
    store = Store(config)
    check_init(job, store)
    train, val = prepare_data(job, store, say)
    plan = make_plan(
        job,
        train_samples=train.num_samples,
        val_samples=val.num_samples,
        shape=shard_shape(train),
    )
    check_cluster(job, list(ray.nodes()))
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    run_name = f"{job.name}-{stamp}-{secrets.token_hex(2)}"
    run_url = f"{job.checkpoint.storage.rstrip('/')}/{run_name}"
    check_storage(store, run_url)
    run = open_run(
        tracking_uri(job, stack),
        experiment=job.experiment,
        name=run_name,
        params=flatten(to_dict(job)),
        tags={
            "rayception.storage": run_url,
            "rayception.world_size": str(plan.world_size),
            "rayception.train_fingerprint": train.fingerprint,
            "rayception.parameters": str(plan.parameters),
        }
        | (child_tags(*parent) if parent is not None else {}),
    )
    save_record(
        store,
        run_url,
        RunRecord(
            name=run_name,
            job=to_dict(job),
            classes=list(train.classes),
            experiment_id=run.experiment_id,
            run_id=run.run_id,
        ),
    )
    log_text(run, to_yaml(job), "job.yaml")
    say(f"run {run_name} in MLflow experiment {job.experiment}")
    try:
        board = make_board()
        with watch(board, plan):
            result = _fit(job, plan, run, run_url, config, board)
        say("training done; logging the model")
        checkpoint_url = f"{run_url}/{result.checkpoint.path.rsplit('/', 1)[1]}"
        model_uri = _log_final_model(job, store, checkpoint_url, run, val)
        attempts = int(ray.get(board.count_attempts.remote(), timeout=30))
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with contextlib.suppress(ServiceError):  # what went wrong first is what is told
            close_run(run, status)
        raise
    close_run(run, "FINISHED")
    metrics = {key: value for key, value in result.metrics.items() if "/" in key}
    return Outcome(
        run=run,
        run_name=run_name,
        metrics=metrics,
        images_per_second=result.metrics["images_per_second"],
        attempts=attempts,
        checkpoint_url=checkpoint_url,
        model_uri=model_uri,
        wall_s=time.monotonic() - began,
    )


def _fit(
    job: Job, plan: Plan, run: RunRef, run_url: str, config: StoreConfig, board: Any
) -> "ray.train.Result":
    cluster, accelerator = job.cluster, job.cluster.accelerator
    storage, name = run_url.rsplit("/", 1)
    resources = {"CPU": float(cluster.cpus_per_worker)}
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "assignment": Assignment(
                job=to_dict(job), plan=plan, run=run, run_url=run_url, store=config, board=board
            )
        },
        torch_config=TorchConfig(
            backend="nccl" if accelerator.is_gpu else "gloo", timeout_s=COLLECTIVE_LIMIT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=plan.world_size,
            use_gpu=accelerator.is_gpu,
            resources_per_worker=resources | ({"GPU": 1.0} if accelerator.is_gpu else {}),
            accelerator_type=accelerator.type if accelerator.is_gpu else None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=ray_path(storage, config),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=job.checkpoint.keep),
        ),
    )
    try:
        result = trainer.fit()
    except SystemExit as error:  # what Ray's own Ctrl-C handler raises in fit()
        raise KeyboardInterrupt from error
    except ray.train.TrainingFailedError as error:
        raise _told(error) from error
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if result.checkpoint is None or "step" not in result.metrics:
        raise TrainingError(
            f"{run_url}: got no checkpoint from a finished run; every run writes one at its end. "
            "Run it again, and report this with Ray's logs."
        )
    return result


def _told(error: "ray.train.TrainingFailedError") -> RayceptionError:
    """One line for what made fit() fail: the first rank's own words where they are ours."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {}) or {}
    for rank in sorted(failures):
        cause: BaseException | None = failures[rank]
        while cause is not None:
            if isinstance(cause, TOLD_IN_ONE_LINE):
                return TrainingError(str(cause))
            cause = cause.__cause__ or getattr(cause, "_base_exc", None) or None
    first: BaseException = failures[min(failures)] if failures else error
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    where = f"rank {min(failures)}" if failures else "training"
    return TrainingError(
        f"{where}: got {lines[-1].strip()[:300] if lines else type(first).__name__}; training "
        "ended after its allowed restarts. See the worker logs, or --debug."
    )


def _log_final_model(
    job: Job, store: Store, checkpoint_url: str, run: RunRef, val: Manifest
) -> str:
    """Logs the averaged weights where an average is kept, else the last ones; -> models:/ URI."""
    state = load_checkpoint(store, checkpoint_url)
    model = build_network(build_job_architecture(job), seed=job.seed)
    model.load_state_dict(state.model)
    if state.average is not None and job.optim.average_decay is not None:
        average = WeightAverage(model, decay=job.optim.average_decay)
        average.load_state_dict(state.average)
        average.copy_to(model)
    with EvalLoader(
        store, val, rank=0, world_size=1, batch_size=2, input_size=job.model.input_size, threads=1
    ) as loader:
        images = next(iter(loader)).images
    return log_model(run, model, normalize(images).contiguous())
