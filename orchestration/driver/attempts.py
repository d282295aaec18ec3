"""The worker groups of one run on the connected cluster, one after another, up to its last step."""

import secrets
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
from orchestration.cluster.signals import handle_endings
from orchestration.driver.attempt_history import AttemptHistory
from orchestration.driver.controller import DriverTrainer
from orchestration.driver.node_watcher import NodeWatcher
from orchestration.driver.retry_policy import train_with_retries
from orchestration.driver.run import Run
from orchestration.driver.run_start import submission_tags
from orchestration.job.cluster import Cluster
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
from orchestration.worker.entry import train_loop
from orchestration.worker.process_group import GroupConfig
from orchestration.worker.worker_config import WorkerConfig

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
    cluster, plan, actor = run.job.cluster, config.plan, config.progress_actor

    def read_nodes_while_ours() -> Nodes:
        """Ends the wait once the lease is lost: its new owner may have that capacity."""
        lease.check()
        return read_nodes()

    def fit(number: int) -> None:
        ranks = plan.world_size
        if number > 0 or cluster.is_elastic:
            _, capacity = wait_for_capacity(
                run.job, read_nodes_while_ours, log=log, limit_s=cluster.wait_s
            )
            if cluster.is_elastic:
                ranks = _choose_ranks(cluster, capacity)
            if ranks != plan.world_size:
                log(f"going on with {ranks} ranks of {plan.world_size}")
        lease.check()
        attempt = ray.get(actor.start_attempt.remote(), timeout=60)
        trainer = _build_trainer(run.job, replace(config, attempt=attempt), ranks, environment)
        trainer.progress_actor, trainer.log = actor, log
        trainer.keeps_states = bool(submission_tags())
        handle_endings(trainer.interrupt)
        try:
            with history.attempt(ranks), NodeWatcher(actor, run.job, ranks, lease, log):
                trainer.fit()
        finally:
            handle_endings()
        lease.check()
        progress = ray.get(actor.read.remote(), timeout=60)
        if progress is not None and progress["step"] < plan.total_steps:
            log(f"the ranks saved and left after step {progress['step']}")
        if trainer.interrupts:
            log(f"stopped after a checkpoint; `rayception resume {run.url}` goes on")
            raise KeyboardInterrupt

    def find_last() -> CheckpointSummary | None:
        names = checkpoint_names(run.store, run.url)
        if not names or names[-1] != checkpoint_name(plan.total_steps):
            return None  # without reading a state
        newest = newest_summary(run.store, run.url)
        return newest if newest is not None and newest.step == plan.total_steps else None

    return find_last() or train_with_retries(  # an earlier driver may have trained to the end
        fit,
        find_last=find_last,
        check_storage=lambda: check_storage(run.store, run.url),
        max_failures=cluster.max_failures,
        log=log,
    )


def _choose_ranks(cluster: Cluster, capacity: Capacity) -> int:
    """Ranks of an elastic job's next worker group: as many as fit once a dead group's resources are
    free."""
    most = cluster.max_nodes * cluster.accelerator.count
    deadline = time.monotonic() + FREED_WITHIN_S
    while capacity.now < most and time.monotonic() < deadline:
        time.sleep(0.5)
        capacity = measure_capacity(cluster, cluster.accelerator, read_nodes())
    return max(capacity.now, capacity.needed)


def _build_trainer(
    job: Job, config: WorkerConfig, ranks: int, environment: dict[str, str]
) -> DriverTrainer:
    cluster, accelerator = job.cluster, job.cluster.accelerator
    resources = {"CPU": float(cluster.cpus_per_worker)}
    return DriverTrainer(
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
            # Ray resumes a name that was used.
            name=f"round-{config.attempt}-{secrets.token_hex(3)}",
            storage_path=ray_path(f"{config.run_url}/ray", config.store),
            worker_runtime_env={"env_vars": environment},
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
