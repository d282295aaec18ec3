"""Announcing that a node will be taken away: Ray places nothing on it any more, and runs that work
there save and leave before its end.

Nothing in open-source Ray turns a cloud's notice into this; who gets the notice calls `rayception
drain`: a person, a node's preStop hook, a script beside the cloud's metadata server.
"""

import time
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from orchestration.errors import JobError, ServiceError

HERE = "here"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drained:
    """node: its id; end_at_ms: Unix time."""

    node: str
    address: str
    end_at_ms: int


def drain(node: str, notice_s: float) -> Drained:
    """Announces, on the connected cluster, that a node ends in `notice_s`.

    node: its address, host name, an id's beginning, or `here`. Raises JobError where that names no
    live node or several; ServiceError where Ray refuses.
    """
    alive = [one for one in ray.nodes() if one["Alive"]]
    found = [one for one in alive if _is_named(one, node)]
    if len(found) != 1:
        names = ", ".join(f"{one['NodeManagerAddress']} ({one['NodeID'][:8]})" for one in alive)
        raise JobError(
            f"NODE: got {node!r}, the address, host name or id of {len(found)} live nodes; it must "
            f"be that of one. Name one of {names}."
        )
    chosen = found[0]
    end_at_ms = int((time.time() + notice_s) * 1000)
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    accepted, why = client.drain_node(
        chosen["NodeID"],
        DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "rayception drain",
        end_at_ms,
    )
    if not accepted:
        raise ServiceError(f"NODE: got {node}; Ray refuses to drain it ({why}). See its logs.")
    return Drained(node=chosen["NodeID"], address=chosen["NodeManagerAddress"], end_at_ms=end_at_ms)


def wait_until_left(limit_s: float) -> bool:
    """Until no rank works on this machine any more; False where one does after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while any("RayTrainWorker" in " ".join(command) for command in _commands()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _commands() -> list[list[str]]:
    found = (process.info["cmdline"] for process in psutil.process_iter(["cmdline"]))
    return [command for command in found if command]


def _is_named(one: dict[str, Any], node: str) -> bool:
    if node == HERE:
        return bool(one["NodeID"] == ray.get_runtime_context().get_node_id())
    return node in (one["NodeManagerAddress"], one["NodeManagerHostname"]) or (
        len(node) >= 6 and str(one["NodeID"]).startswith(node)
    )
