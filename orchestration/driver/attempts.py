"""The worker groups of one run on the connected cluster, one after the other, to its last step."""

import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

from datasets.storage.store import Store
from orchestration.cluster.capacity import (
    SPOT,
    Capacity,
    Nodes,
    measure_capacity,
    read_nodes,
    wait_for_capacity,
)
from orchestration.cluster.preflight import check_storage
from orchestration.cluster.prestart import set_environment
from orchestration.driver.attempt_history import AttemptHistory
from orchestration.driver.controller import DriverTrainer
from orchestration.driver.node_watcher import NodeWatcher
from orchestration.driver.retry_policy import train_with_retries
from orchestration.driver.run_start import submission_tags
from orchestration.job.job import Job
from orchestration.run.checkpoint import (
    Summary,
    checkpoint_name,
    checkpoint_names,
    newest_summary,
)
from orchestration.run.storage import ray_path
from orchestration.stack.local import Log
from orchestration.worker.process_group import GroupConfig
from orchestration.worker.worker_config import WorkerConfig, train_loop

# A rank that waits this long for another one has lost it. (A dead node's ranks are known sooner:
# Ray ends the group when its health checks fail.)
COLLECTIVE_LIMIT_S = 300
SETTLE_S = 5.0


def train_run(
    job: Job,
    config: WorkerConfig,
    store: Store,
    history: AttemptHistory,
    check_lease: Callable[[], None],
    log: Log,
) -> Summary:
    """Trains to the last step, in as many worker groups as it takes; -> its checkpoint.

    still_ours: raises TakenOver once the run is another driver's. Raises RayceptionError, or
    KeyboardInterrupt: the first interrupt lets the ranks save and leave, the second ends them.
    """
    environment = set_environment(job)
    ends: list[Summary] = []
    cluster, plan = job.cluster, config.plan

    def read_nodes_of_ours() -> Nodes:
        """Waiting for room ends where the run is another driver's, which may have that room."""
        check_lease()
        return read_nodes()

    def fit(number: int) -> None:
        ranks = plan.world_size
        if number > 0 or cluster.is_elastic:
            chosen, capacity = wait_for_capacity(
                job, read_nodes_of_ours, log=log, limit_s=cluster.wait_s
            )
            ranks = _ranks_now(chosen, capacity)
            if ranks != plan.world_size:
                log(f"going on with {ranks} ranks of {plan.world_size}")
        check_lease()
        attempt = ray.get(config.progress_actor.start_attempt.remote(), timeout=60)
        trainer = _build_trainer(job, replace(config, attempt=attempt), ranks, number, environment)
        trainer.progress_actor, trainer.log = config.progress_actor, log
        trainer.keeps_states = bool(submission_tags())
        accelerator = cluster.accelerator
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, trainer.interrupt)
        try:
            with (
                history.attempt(ranks),
                NodeWatcher(
                    config.progress_actor,
                    job,
                    accelerator,
                    ranks=ranks,
                    check_lease=check_lease,
                    log=log,
                ),
            ):
                trainer.fit()
        finally:
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signal_number, signal.default_int_handler)
        check_lease()
        last = ray.get(config.progress_actor.read.remote(), timeout=60)
        if last is not None and last["step"] < plan.total_steps:
            log(f"the ranks saved and left after step {last['step']}")
        if trainer.interrupts:
            log(f"stopped after a checkpoint; `rayception resume {config.run_url}` goes on")
            raise KeyboardInterrupt

    def is_done() -> bool:
        found = newest_summary(store, config.run_url)
        if found is not None and found.step >= plan.total_steps:
            ends.append(found)
        return bool(ends)

    names = checkpoint_names(store, config.run_url)
    if names and names[-1] == checkpoint_name(plan.total_steps) and is_done():
        return ends[-1]  # its driver died, or MLflow did not answer, after the last step
    train_with_retries(
        fit,
        is_done=is_done,
        check_storage=lambda: check_storage(store, config.run_url),
        max_failures=cluster.max_failures,
        log=log,
    )
    return ends[-1]


def _ranks_now(job: Job, capacity: Capacity) -> int:
    """Ranks of the next worker group: all of a fixed job, of an elastic one those that fit.

    What a dead group held is free after a moment: an elastic job waits for it, not for long.
    """
    cluster, accelerator = job.cluster, job.cluster.accelerator
    most = cluster.max_nodes * accelerator.count
    if not cluster.is_elastic:
        return most
    deadline = time.monotonic() + SETTLE_S
    while capacity.now < most and time.monotonic() < deadline:
        time.sleep(0.5)
        capacity = measure_capacity(cluster, accelerator, read_nodes())
    return max(capacity.now, cluster.min_nodes * accelerator.count)


class _Trainer(DriverTrainer):
    """A trainer whose first interrupt asks the ranks to save and leave; the second ends them."""

    log: Log
    interrupts = 0

    def interrupt(self, *_: object) -> None:
        """What a signal does while it trains."""
        self.interrupts += 1
        is_training = ray.get(self.progress_actor.read.remote(), timeout=10) is not None
        if self.interrupts == 1 and is_training:
            self.progress_actor.request_stop.remote(0.0)
            self.log("stopping after a checkpoint (again: at once)")
            return
        raise KeyboardInterrupt  # fit() ends the ranks


def _build_trainer(
    job: Job, config: WorkerConfig, ranks: int, number: int, environment: dict[str, str]
) -> _Trainer:
    cluster, accelerator = job.cluster, job.cluster.accelerator
    resources = {"CPU": float(cluster.cpus_per_worker)}
    return _Trainer(
        train_loop,
        train_loop_config={"assignment": config},
        backend_config=GroupConfig(
            backend="nccl" if accelerator.is_gpu else "gloo", timeout_s=COLLECTIVE_LIMIT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=accelerator.is_gpu,
            resources_per_worker=resources | ({"GPU": 1.0} if accelerator.is_gpu else {}),
            accelerator_type=accelerator.type if accelerator.is_gpu else None,
            label_selector=SPOT if cluster.use_spot else None,
        ),
        run_config=RunConfig(
            name=f"round-{number}-{secrets.token_hex(3)}",  # Ray goes on under a used name
            storage_path=ray_path(f"{config.run_url}/ray", config.store),
            worker_runtime_env={"env_vars": environment},
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
