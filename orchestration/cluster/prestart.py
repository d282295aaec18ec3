"""Prestarted worker processes, which import what a rank needs before there is a rank.

Ray gives an idle process to the next actor with the same runtime environment. Nodes are asked for
such processes at three times: once the cluster is connected, for the first ranks, while the driver
prepares the run; once ranks have trained for a while, for those that replace a dead group; at the
end of a run on a kept stack, for the ranks of its next run (worker_pool.py).
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.utils import get_runtime_env_info
from ray.core.generated.common_pb2 import Language
from ray.core.generated.node_manager_pb2 import PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
from ray.runtime_env import RuntimeEnv

from orchestration.cluster.capacity import free_ranks_by_node
from orchestration.cluster.worker_imports import CPU, CPUS_VARIABLE, GPU, KIND_VARIABLE
from orchestration.job.job import Job
from orchestration.stack.processes import MARKER
from orchestration.stack.state import Stack
from orchestration.stack.worker_pool import new_pool, save_pool, take_pool

logger = logging.getLogger(__name__)

# Seconds between Ray Train's polls of its ranks: half of it is lost at each end and failure. A
# controller makes about a thousand calls a second, so many ranks are polled less often.
POLL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
POLL_IS_SET = POLL_VARIABLE in os.environ  # by a person, whose value stays
MAX_FAST_POLL_RANKS = 256
# Ray Train passes these from the driver to the ranks. Its preemption watcher would be one more
# process for each group, for what the driver's node watcher does already; its controller's
# structured log lines would stand between ours.
RAY_TRAIN_VARIABLES = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
RPC_LIMIT_S = 5.0
# How long an idle process is kept:
FIRST_KEEP_S, SPARE_KEEP_S, POOL_KEEP_S = 60, 30 * 86400, 86400

_pool_variables: dict[str, str] = {}  # identify the pool that the next ranks come from


def set_environment(job: Job) -> dict[str, str]:
    """Sets Ray Train's variables in this process for a run of the job; -> the environment of its
    ranks: the same variables, the hook that starts their imports, those of the pool."""
    return _environment(job) | _pool_variables


def _environment(job: Job) -> dict[str, str]:
    for name, value in RAY_TRAIN_VARIABLES.items():
        os.environ.setdefault(name, value)
    if not POLL_IS_SET:  # set anew for each run: all runs of a sweep may be in this process
        os.environ[POLL_VARIABLE] = "0.25" if _max_ranks(job) <= MAX_FAST_POLL_RANKS else "1"
    return {name: os.environ[name] for name in (*RAY_TRAIN_VARIABLES, POLL_VARIABLE)} | {
        WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "orchestration.cluster.worker_imports.start",
        KIND_VARIABLE: GPU if job.cluster.accelerator.is_gpu else CPU,
        CPUS_VARIABLE: str(job.cluster.cpus_per_worker),
    }


def _max_ranks(job: Job) -> int:
    return job.cluster.max_nodes * job.cluster.accelerator.count


def prestart_workers(job: Job, stack: Stack | None = None) -> None:
    """Prestarts the job's processes on every node with free capacity. stack: a kept one, whose pool
    is used first."""
    missing = _max_ranks(job)
    if stack is not None:
        ready, variables = take_pool(stack, _environment(job))
        _pool_variables.update(variables)
        missing -= ready
    free = free_ranks_by_node(job.cluster)
    _prestart(job, {node: min(ranks, missing) for node, ranks in free.items()}, FIRST_KEEP_S)


def fill_pool(job: Job, stack: Stack) -> None:
    """Prestarts processes for the next run on a kept stack, as many as this run has ranks. Each
    uses about 0.4 GB of memory, for a day at most."""
    _pool_variables.clear()
    try:
        pool, ranks = new_pool(stack, _environment(job)), _max_ranks(job)
        _pool_variables[MARKER] = pool["marker"]
        by_node = {node["NodeID"]: ranks for node in ray.nodes()}
        if started := _prestart(job, by_node, POOL_KEEP_S, of_job=False):
            save_pool(stack, pool, started)
    except OSError as error:  # a full disk, a file that vanished: the run itself is complete
        logger.warning("no processes for the next run: %s", error)


def start_spares(job: Job, nodes: Iterable[str]) -> None:
    """Prestarts processes that replace ranks after a failure, kept until the run ends.

    nodes: the node id of each rank. As many processes start there as there are ranks, and on as
    many other nodes with free capacity, where Ray may place ranks then. Each uses about 0.4 GB.
    """
    of_ranks = Counter(nodes)
    max_per_node = max(of_ranks.values(), default=0)
    free = free_ranks_by_node(job.cluster)
    others = [node for node, ranks in sorted(free.items()) if ranks and node not in of_ranks]
    more = {node: min(free[node], max_per_node) for node in others[: len(of_ranks)]}
    _prestart(job, {**of_ranks, **more}, SPARE_KEEP_S)


def _prestart(job: Job, by_node: Mapping[str, int], keep_s: int, *, of_job: bool = True) -> int:
    """-> the number of processes that nodes agreed to start. of_job: they end with this Ray job;
    otherwise any job may get them. Ranks also start without prestarted processes, so no error here
    ends a run."""
    started = 0
    try:
        runtime_env = _runtime_env(set_environment(job))
        job_id = bytes.fromhex(ray.get_runtime_context().get_job_id()) if of_job else b""
        for node in ray.nodes():
            if node["Alive"] and by_node.get(node["NodeID"], 0) > 0:
                request = PrestartWorkersRequest(
                    language=Language.PYTHON, job_id=job_id, runtime_env_info=runtime_env,
                    keep_alive_duration_secs=keep_s, num_workers=by_node[node["NodeID"]],
                )  # fmt: skip
                if _send(request, f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"):
                    started += request.num_workers
    except Exception as error:
        logger.warning("no prestarted processes: %s", error)
    return started


def _send(request: PrestartWorkersRequest, address: str) -> bool:
    """-> whether the node agreed."""
    try:
        with init_grpc_channel(address) as channel:
            NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=RPC_LIMIT_S)
    except grpc.RpcError as error:
        logger.info("no prestarted processes on %s: %s", address, error)
        return False
    return True


def _runtime_env(variables: Mapping[str, str]) -> Any:
    """A rank's runtime environment exactly as Ray's core serializes it: an actor gets an idle
    process only if the two strings are equal. With a runtime environment of the job's own, Ray
    serializes without spaces; else as Python does."""
    of_job: dict[str, Any] = dict(ray.get_runtime_context().runtime_env)
    merged = of_job | {"env_vars": of_job.get("env_vars", {}) | variables}
    info = get_runtime_env_info(RuntimeEnv(**merged))
    if of_job:
        values = json.loads(info.serialized_runtime_env)
        info.serialized_runtime_env = json.dumps(
            values, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
    return info
