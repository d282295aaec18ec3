"""Which of a job's accelerators a cluster has, and for how many ranks there is room. Pure, but for
`look`."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestration.errors import ServiceError
from orchestration.job.accelerators import Accelerator
from orchestration.job.cluster import LOCAL, Cluster
from orchestration.job.job import Job

SPOT = {"ray.io/market-type": "spot"}  # the label that Ray's own autoscalers give
FIRST_PAUSE_S, PAUSE_S = 0.25, 2.0
QUIET_S = 3.0  # what a dead group held is free within a second or two: no word of that
SAY_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One live node: all its resources, those that nobody has now, its labels."""

    total: dict[str, float]
    free: dict[str, float]
    labels: dict[str, str]
    id: str = ""  # "": it does not live yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodes:
    """What a cluster has, and the nodes that its autoscaler could add."""

    live: list[Node]
    addable: list[Node]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Ranks of one accelerator: that fit now, on an empty cluster, and on one grown to its end."""

    accelerator: Accelerator
    now: int
    ever: int
    grown: int


def measure_capacity(cluster: Cluster, accelerator: Accelerator, nodes: Nodes) -> Capacity:
    """At most `accelerator.count` ranks go to a node, and as many as the job can use."""

    def ranks(resources: list[dict[str, float]]) -> int:
        each = [_ranks_that_fit(one, cluster, accelerator) for one in resources]
        return min(sum(each), cluster.max_nodes * accelerator.count)

    live = [node for node in nodes.live if _is_eligible(node, cluster, accelerator)]
    addable = [node for node in nodes.addable if _is_eligible(node, cluster, accelerator)]
    return Capacity(
        accelerator=accelerator,
        now=ranks([node.free for node in live]),
        ever=ranks([node.total for node in live]),
        grown=ranks([node.total for node in [*live, *addable]]),
    )


def free_ranks_by_node(cluster: Cluster, accelerator: Accelerator, nodes: Nodes) -> dict[str, int]:
    """How many ranks have room now, by the id of their node."""
    return {
        node.id: _ranks_that_fit(node.free, cluster, accelerator)
        for node in nodes.live
        if _is_eligible(node, cluster, accelerator)
    }


def choose_accelerator(job: Job, nodes: Nodes) -> Capacity:
    """The first of the job's accelerators with room now, else one that could have it.

    Raises ServiceError, naming what the cluster has, where none ever could: Ray itself would wait
    for ever.
    """
    cluster = job.cluster
    rooms = [measure_capacity(cluster, one, nodes) for one in cluster.choices]

    def wanted(capacity: Capacity) -> int:
        return cluster.min_nodes * capacity.accelerator.count

    for name in ("now", "ever", "grown"):
        for capacity in rooms:
            if getattr(capacity, name) >= wanted(capacity):
                return capacity
    has = [node.total for node in nodes.live]
    types = sorted({key.split(":")[1] for one in has for key in one if "accelerator_type" in key})
    total = {key: int(sum(one.get(key, 0) for one in has)) for key in ("CPU", "GPU")}
    best = max(rooms, key=lambda capacity: capacity.grown)
    remedy = (
        "Run `rayception stack down` and start again, or ask for less"
        if cluster.address == LOCAL
        else "Add nodes, or ask for less in cluster.accelerators and cluster.num_nodes"
    )
    grows = f" (its autoscaler could bring it to {best.grown})" if nodes.addable else ""
    spot = " spot" if cluster.use_spot else ""
    raise ServiceError(
        f"cluster.accelerators: got {' or '.join(map(str, cluster.choices))} on "
        f"{cluster.min_nodes}{spot} nodes, which is {wanted(best)} ranks "
        f"({best.accelerator.type} with {cluster.cpus_per_worker} CPUs each); the cluster has "
        f"room for {best.ever}{grows} on {len(has)} nodes with {total['CPU']} CPUs, "
        f"{total['GPU']} GPUs ({', '.join(types) or 'no GPU type'}). {remedy}."
    )


def wait_for_capacity(
    job: Job,
    read_nodes: Callable[[], Nodes],
    *,
    log: Callable[[str], None],
    limit_s: float,
    pause_s: float = PAUSE_S,
) -> tuple[Job, Capacity]:
    """The job on the one accelerator that it gets, once there is room; what is waited for longer
    than a moment is said.

    A cluster whose autoscaler can make the room is not waited for: it begins when it is asked.
    Raises ServiceError: there can never be room, or there was none for `limit_s`.
    """
    began, said = time.monotonic(), QUIET_S - SAY_EVERY_S
    pause_now = min(FIRST_PAUSE_S, pause_s)
    while True:
        capacity = choose_accelerator(job, read_nodes())
        chosen = replace(job, cluster=replace(job.cluster, accelerators=str(capacity.accelerator)))
        wanted = job.cluster.min_nodes * capacity.accelerator.count
        if capacity.now >= wanted:
            return chosen, capacity
        what = (
            f"{wanted} ranks of {capacity.accelerator.type} wanted, room for {capacity.now} now "
            f"and for {max(capacity.ever, capacity.grown)} when other work is done"
        )
        if capacity.ever < wanted:
            log(f"asking the autoscaler for nodes: {what}")
            return chosen, capacity
        waited = time.monotonic() - began
        if waited > limit_s:
            raise ServiceError(
                f"cluster.accelerators: got no room within {limit_s:.0f} s: {what}. Wait longer "
                "with cluster.wait_s, stop other work (`rayception list`), or ask for less."
            )
        if waited - said >= SAY_EVERY_S:
            said = waited
            log(f"waiting for room: {what}")
        time.sleep(pause_now)
        pause_now = min(2 * pause_now, pause_s)


def read_nodes() -> Nodes:
    """What the connected cluster has. Nodes that are being taken away do not count."""
    import ray
    from ray._private.state import available_resources_per_node, state

    free = available_resources_per_node()
    leaving = state.get_draining_nodes()
    live = [
        Node(
            total=one["Resources"],
            free=free.get(one["NodeID"], {}),
            labels=one.get("Labels") or {},
            id=one["NodeID"],
        )
        for one in ray.nodes()
        if one["Alive"] and one["NodeID"] not in leaving
    ]
    addable = []
    for group in getattr(state.get_cluster_config(), "node_group_configs", []):
        made = Node(total=dict(group.resources), free={}, labels=dict(getattr(group, "labels", {})))
        addable += [made] * max(0, min(group.max_count, 10_000))
    return Nodes(live=live, addable=addable)


def _is_eligible(node: Node, cluster: Cluster, accelerator: Accelerator) -> bool:
    if cluster.use_spot and any(node.labels.get(key) != value for key, value in SPOT.items()):
        return False
    return not accelerator.is_gpu or accelerator.marker in node.total


def _ranks_that_fit(has: dict[str, float], cluster: Cluster, accelerator: Accelerator) -> int:
    ranks = has.get("CPU", 0.0) // cluster.cpus_per_worker
    if accelerator.is_gpu:
        ranks = min(ranks, has.get("GPU", 0.0))
    return int(min(ranks, accelerator.count))
