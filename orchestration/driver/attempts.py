"""The worker groups of one run on the connected cluster, one after another, up to its last step."""

import secrets
import signal
import time
from dataclasses import replace

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig

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
from orchestration.driver.run import Run
from orchestration.driver.run_start import submission_tags
from orchestration.job.job import Job
from orchestration.run.checkpoint import (
    CheckpointSummary,
    checkpoint_name,
    checkpoint_names,
    newest_summary,
)
from orchestration.run.lease import Lease
from orchestration.run.storage import ray_path
from orchestration.stack.local import Log
from orchestration.worker.process_group import GroupConfig
from orchestration.worker.worker_config import WorkerConfig, train_loop

# A rank that waits this long for another one counts it as lost. (A dead node is noticed sooner: Ray
# ends the group when its health checks fail.)
COLLECTIVE_LIMIT_S = 300
FREED_WITHIN_S = 5.0  # the resources of a dead group


def train_run(
    run: Run, config: WorkerConfig, history: AttemptHistory, lease: Lease, log: Log
) -> CheckpointSummary:
    """Trains to the last step in as many worker groups as it takes; -> the last checkpoint.

    Raises LeaseLost, another RayceptionError, or KeyboardInterrupt: the first interrupt lets the
    ranks checkpoint and stop, the second ends them.
    """
    environment = set_environment(run.job)
    last: list[CheckpointSummary] = []
    cluster, plan, actor = run.job.cluster, config.plan, config.progress_actor

    def read_nodes_while_ours() -> Nodes:
        """Ends the wait once the lease is lost: its new owner may have that capacity."""
        lease.check()
        return read_nodes()

    def fit(number: int) -> None:
        ranks = plan.world_size
        if number > 0 or cluster.is_elastic:
            chosen, capacity = wait_for_capacity(
                run.job, read_nodes_while_ours, log=log, limit_s=cluster.wait_s
            )
            ranks = _choose_ranks(chosen, capacity)
            if ranks != plan.world_size:
                log(f"going on with {ranks} ranks of {plan.world_size}")
        lease.check()
        attempt = ray.get(actor.start_attempt.remote(), timeout=60)
        trainer = _build_trainer(
            run.job, replace(config, attempt=attempt), ranks, number, environment
        )
        trainer.progress_actor, trainer.log = actor, log
        trainer.keeps_states = bool(submission_tags())
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signal_number, trainer.interrupt)
        try:
            with (
                history.attempt(ranks),
                NodeWatcher(actor, run.job, cluster.accelerator, ranks, lease, log),
            ):
                trainer.fit()
        finally:
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signal_number, signal.default_int_handler)
        lease.check()
        progress = ray.get(actor.read.remote(), timeout=60)
        if progress is not None and progress["step"] < plan.total_steps:
            log(f"the ranks saved and left after step {progress['step']}")
        if trainer.interrupts:
            log(f"stopped after a checkpoint; `rayception resume {run.url}` goes on")
            raise KeyboardInterrupt

    def is_done() -> bool:
        newest = newest_summary(run.store, run.url)
        if newest is not None and newest.step >= plan.total_steps:
            last.append(newest)
        return bool(last)

    names = checkpoint_names(run.store, run.url)
    if names and names[-1] == checkpoint_name(plan.total_steps) and is_done():
        return last[-1]  # trained to the end by an earlier driver
    train_with_retries(
        fit,
        is_done=is_done,
        check_storage=lambda: check_storage(run.store, run.url),
        max_failures=cluster.max_failures,
        log=log,
    )
    return last[-1]


def _choose_ranks(job: Job, capacity: Capacity) -> int:
    """Ranks of the next worker group: all of a fixed job; of an elastic one, as many as fit once a
    dead group's resources are free."""
    cluster, accelerator = job.cluster, job.cluster.accelerator
    most = cluster.max_nodes * accelerator.count
    if not cluster.is_elastic:
        return most
    deadline = time.monotonic() + FREED_WITHIN_S
    while capacity.now < most and time.monotonic() < deadline:
        time.sleep(0.5)
        capacity = measure_capacity(cluster, accelerator, read_nodes())
    return max(capacity.now, cluster.min_nodes * accelerator.count)


class _Trainer(DriverTrainer):
    """The first interrupt asks the ranks to checkpoint and stop, the second ends them."""

    log: Log
    interrupts = 0

    def interrupt(self, *_: object) -> None:
        """The signal handler while it trains."""
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
        train_loop_config={"config": config},
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
            name=f"round-{number}-{secrets.token_hex(3)}",  # Ray resumes a name that was used
            storage_path=ray_path(f"{config.run_url}/ray", config.store),
            worker_runtime_env={"env_vars": environment},
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
