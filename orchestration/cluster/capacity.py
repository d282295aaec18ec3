"""Which of a job's accelerators a cluster has, and for how many ranks; waiting until they are free.

Only `read_nodes` asks Ray.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from orchestration.errors import ServiceError
from orchestration.job.accelerators import Accelerator
from orchestration.job.cluster import LOCAL, Cluster
from orchestration.job.job import Job

SPOT = {"ray.io/market-type": "spot"}  # the label that Ray's autoscalers set
FIRST_PAUSE_S, PAUSE_S = 0.25, 2.0
QUIET_S = 3.0  # a dead group's resources are free within a second or two: not worth a log line
LOG_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node's resources, all and free ones, and its labels."""

    total: dict[str, float]
    free: dict[str, float]
    labels: dict[str, str]
    id: str = ""  # "": not started yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """The live nodes of a cluster, and those that its autoscaler can add."""

    live: list[Node]
    addable: list[Node]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Ranks of one accelerator.

    needed: the fewest that the job runs with. now: that fit into free resources. total: that fit
    once other work is done. autoscaled: the same, with every node that the autoscaler can add.
    """

    accelerator: Accelerator
    needed: int
    now: int
    total: int
    autoscaled: int


def measure_capacity(cluster: Cluster, accelerator: Accelerator, nodes: Nodes) -> Capacity:
    """At most `accelerator.count` ranks per node, and at most as many as the job can use."""
    fit = partial(_ranks_that_fit, cluster, accelerator)
    most = cluster.max_nodes * accelerator.count
    total = sum(fit(node, node.total) for node in nodes.live)
    more = sum(fit(node, node.total) for node in nodes.addable)
    return Capacity(
        accelerator=accelerator,
        needed=cluster.min_nodes * accelerator.count,
        now=min(most, sum(fit(node, node.free) for node in nodes.live)),
        total=min(most, total),
        autoscaled=min(most, total + more),
    )


def free_ranks_by_node(cluster: Cluster) -> dict[str, int]:
    """Ranks that fit into the free resources of each node of the connected cluster, by node id."""
    fit = partial(_ranks_that_fit, cluster, cluster.accelerator)
    return {node.id: fit(node, node.free) for node in read_nodes().live}


def choose_accelerator(job: Job, nodes: Nodes) -> Capacity:
    """The first of the job's accelerators with enough capacity now, else in total, else with the
    autoscaler's nodes.

    Raises ServiceError, naming the cluster's resources, if no accelerator can ever have enough: Ray
    itself would wait forever.
    """
    cluster = job.cluster
    capacities = [measure_capacity(cluster, choice, nodes) for choice in cluster.choices]
    for name in ("now", "total", "autoscaled"):
        for capacity in capacities:
            if getattr(capacity, name) >= capacity.needed:
                return capacity
    resources = [node.total for node in nodes.live]
    names = {name for node in resources for name in node if "accelerator_type" in name}
    types = sorted(name.split(":")[1] for name in names)
    cpus, gpus = (int(sum(node.get(name, 0) for node in resources)) for name in ("CPU", "GPU"))
    best = max(capacities, key=lambda capacity: capacity.autoscaled)
    remedy = (
        "Run `rayception stack down` and start again, or ask for less"
        if cluster.address == LOCAL
        else "Add nodes, or ask for less in cluster.accelerators and cluster.num_nodes"
    )
    grows = f" (its autoscaler could bring it to {best.autoscaled})" if nodes.addable else ""
    spot = " spot" if cluster.use_spot else ""
    raise ServiceError(
        f"cluster.accelerators: got {' or '.join(map(str, cluster.choices))} on "
        f"{cluster.min_nodes}{spot} nodes, which is {best.needed} ranks "
        f"({best.accelerator.type} with {cluster.cpus_per_worker} CPUs each); the cluster has "
        f"room for {best.total}{grows} on {len(resources)} nodes with {cpus} CPUs, "
        f"{gpus} GPUs ({', '.join(types) or 'no GPU type'}). {remedy}."
    )


def wait_for_capacity(
    job: Job, read_nodes: Callable[[], Nodes], *, log: Callable[[str], None], limit_s: float
) -> tuple[Job, Capacity]:
    """Waits until the job fits; -> (the job with only the accelerator that it gets, its capacity).

    Does not wait for nodes of an autoscaler, which adds them once the ranks are requested. Raises
    ServiceError if the job can never fit, or did not within `limit_s`.
    """
    start = time.monotonic()
    log_after_s, pause_s = QUIET_S, FIRST_PAUSE_S
    while True:
        capacity = choose_accelerator(job, read_nodes())
        chosen = replace(job, cluster=replace(job.cluster, accelerators=str(capacity.accelerator)))
        if capacity.now >= capacity.needed:
            return chosen, capacity
        state = (
            f"{capacity.needed} ranks of {capacity.accelerator.type} wanted, room for "
            f"{capacity.now} now and for {capacity.autoscaled} when other work is done"
        )
        if capacity.total < capacity.needed:
            log(f"asking the autoscaler for nodes: {state}")
            return chosen, capacity
        waited_s = time.monotonic() - start
        if waited_s > limit_s:
            raise ServiceError(
                f"cluster.accelerators: got no room within {limit_s:.0f} s: {state}. Wait longer "
                "with cluster.wait_s, stop other work (`rayception list`), or ask for less."
            )
        if waited_s >= log_after_s:
            log_after_s = waited_s + LOG_EVERY_S
            log(f"waiting for room: {state}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S)


def read_nodes() -> Nodes:
    """The nodes of the connected cluster, without those that are draining."""
    import ray
    from ray._private.state import available_resources_per_node, state

    free = available_resources_per_node()
    draining = state.get_draining_nodes()
    live = [
        Node(
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
            labels=node.get("Labels") or {},
            id=node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]
    addable = []
    for group in getattr(state.get_cluster_config(), "node_group_configs", []):
        node = Node(total=dict(group.resources), free={}, labels=dict(getattr(group, "labels", {})))
        addable += [node] * max(0, min(group.max_count, 10_000))
    return Nodes(live=live, addable=addable)


def _ranks_that_fit(
    cluster: Cluster, accelerator: Accelerator, node: Node, resources: dict[str, float]
) -> int:
    """Ranks that fit into these resources of a node; 0 on one of another kind."""
    if cluster.use_spot and not SPOT.items() <= node.labels.items():
        return 0
    if accelerator.is_gpu and accelerator.ray_resource not in node.total:
        return 0
    ranks = resources.get("CPU", 0.0) // cluster.cpus_per_worker
    if accelerator.is_gpu:
        ranks = min(ranks, resources.get("GPU", 0.0))
    return int(min(ranks, accelerator.count))
