"""Processes that import what a rank needs before there is a rank.

Right after the cluster is joined, every node with room for ranks is asked to start processes in the
ranks' own environment, beside what the driver still has to do; Ray gives an idle process to the
actor that asks next with the same environment. Once ranks have trained for a while, their nodes and
as many others are asked for spare ones: after a death, the next ranks begin with what takes the
longest behind them. A kept stack is asked for those of its next run at the end of this one
(worker_pool.py).
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

from orchestration.cluster.capacity import free_ranks_by_node, read_nodes
from orchestration.cluster.worker_imports import CPU, CPUS_VARIABLE, GPU, KIND_VARIABLE
from orchestration.job.job import Job
from orchestration.stack.state import Stack
from orchestration.stack.worker_pool import code_now, new_pool, save_pool, take_pool

logger = logging.getLogger(__name__)

FEW_RANKS = 256
POLL_VARIABLE = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
POLL_IS_GIVEN = POLL_VARIABLE in os.environ  # by a person, whose value stays
# Ray Train hands these on from the driver to its ranks. Its watcher of announced ends would be a
# process more for each group, and the lookout does that; its controller's log lines are for the
# authors of Ray, and would stand between ours.
RAY_TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
}
ANSWER_LIMIT_S = 5.0
KEPT_S = 60  # of a process that became no rank
SPARE_S = 30 * 86400
POOL_S = 86400


_of_pool: dict[str, str] = {}  # what the processes have besides that a kept stack had ready


def set_environment(job: Job) -> dict[str, str]:
    """Sets Ray Train's variables in this process for a run of the job; -> the environment of its
    ranks: those variables, the hook that begins their imports, what tells a pool's processes."""
    return _environment(job) | _of_pool


def _environment(job: Job) -> dict[str, str]:
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    if not POLL_IS_GIVEN:  # anew for each run: those of a sweep have one process
        os.environ[POLL_VARIABLE] = _poll_s(job)
    return {name: os.environ[name] for name in (*RAY_TRAIN, POLL_VARIABLE)} | {
        WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "orchestration.cluster.worker_imports.begin",
        KIND_VARIABLE: GPU if job.cluster.accelerator.is_gpu else CPU,
        CPUS_VARIABLE: str(job.cluster.cpus_per_worker),
    }


def prestart_workers(job: Job, stack: Stack | None = None) -> None:
    """Asks every node with room for ranks for their processes, whose imports nobody waits for; of
    a kept stack for those that it does not have ready."""
    cluster = job.cluster
    most = cluster.max_nodes * cluster.accelerator.count
    if stack is not None:
        ready, added = take_pool(stack, _environment(job))
        _of_pool.update(added)
        most -= ready
    room = free_ranks_by_node(cluster, cluster.accelerator, read_nodes())
    _start(job, {node: min(ranks, most) for node, ranks in room.items()}, KEPT_S)


def fill_pool(job: Job, stack: Stack) -> None:
    """Asks a kept stack's node for the processes of the next run's ranks, as many as this run's,
    for a day. Each holds some 0.4 GB of memory."""
    cluster = job.cluster
    ranks = cluster.max_nodes * cluster.accelerator.count
    _of_pool.clear()
    try:
        environment, code = _environment(job), code_now()
        _of_pool.update(new_pool(stack))
        _start(job, {node["NodeID"]: ranks for node in ray.nodes()}, POOL_S, of_job=False)
        save_pool(stack, environment, _of_pool, code, ranks)
    except OSError as error:  # a full disk, a file that goes as it is looked at: the run is done
        logger.warning("no processes for the next run: %s", error)


def start_spares(job: Job, nodes: Iterable[str]) -> None:
    """Asks for processes that wait until a rank dies: the nodes of a group's ranks (their ids, one
    for each rank), and as many nodes more with room, where Ray may put ranks then. Each holds some
    0.4 GB of memory until the run ends."""
    ours = Counter(nodes)
    most = max(ours.values(), default=0)
    room = free_ranks_by_node(job.cluster, job.cluster.accelerator, read_nodes())
    others = [node for node, ranks in sorted(room.items()) if ranks and node not in ours]
    more = {node: min(room[node], most) for node in others[: len(ours)]}
    _start(job, {**ours, **more}, SPARE_S)


def _start(job: Job, by_node: Mapping[str, int], kept_s: int, *, of_job: bool = True) -> None:
    """Where Ray does not do it, ranks start as they would without it: nothing here ends a run."""
    try:
        _ask(job, by_node, kept_s, of_job)
    except Exception as error:
        logger.warning("no processes ahead of time: %s", error)


def _ask(job: Job, by_node: Mapping[str, int], kept_s: int, of_job: bool) -> None:
    """of_job: they end with this Ray job; else they are whose asks next."""
    runtime_env = _runtime_env(set_environment(job))
    for node in ray.nodes():
        if not node["Alive"] or by_node.get(node["NodeID"], 0) < 1:
            continue
        request = PrestartWorkersRequest(
            language=Language.PYTHON,
            job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()) if of_job else b"",
            runtime_env_info=runtime_env,
            keep_alive_duration_secs=kept_s,
            num_workers=by_node[node["NodeID"]],
        )
        address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        try:
            with init_grpc_channel(address) as channel:
                NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_LIMIT_S)
        except grpc.RpcError as error:
            logger.info("no process ahead of time on %s: %s", address, error)


def _runtime_env(variables: Mapping[str, str]) -> Any:
    """A rank's runtime environment as Ray's core writes it: it gives an actor an idle process whose
    text is the same to the letter. What an actor adds to its job's own is written without spaces;
    where the job has none, as Python writes it."""
    of_job: dict[str, Any] = dict(ray.get_runtime_context().runtime_env)
    merged = of_job | {"env_vars": of_job.get("env_vars", {}) | variables}
    info = get_runtime_env_info(RuntimeEnv(**merged))
    if of_job:
        found = json.loads(info.serialized_runtime_env)
        info.serialized_runtime_env = json.dumps(
            found, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
    return info


def _poll_s(job: Job) -> str:
    """Seconds between Ray Train's looks at its ranks: half of it is lost at each end and death. One
    controller makes some thousand calls a second, so many ranks are asked more rarely."""
    ranks = job.cluster.max_nodes * job.cluster.accelerator.count
    return "0.25" if ranks <= FEW_RANKS else "1"
