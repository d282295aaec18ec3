"""Announcing that a node will be taken away: Ray places nothing on it any more, and its runs
checkpoint and leave before its end.

Open-source Ray does not turn a cloud's preemption notice into a drain; whoever receives the notice
calls `rayception drain`: a person, a node's preStop hook, a script that polls the metadata server.
"""

import time
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from orchestration.errors import JobError, ServiceError


def drain(node: str, notice_s: float) -> dict[str, Any]:
    """Announces to the connected cluster that a node ends in `notice_s`; -> its id and address, and
    its end as Unix time in ms.

    node: its address, host name, the beginning of its id, or `here`. Raises JobError unless that
    names exactly one live node; ServiceError if Ray refuses.
    """
    live = [entry for entry in ray.nodes() if entry["Alive"]]
    matches = [entry for entry in live if _matches(entry, node)]
    if len(matches) != 1:
        names = ", ".join(
            f"{entry['NodeManagerAddress']} ({entry['NodeID'][:8]})" for entry in live
        )
        raise JobError(
            f"NODE: got {node!r}, the address, host name or id of {len(matches)} live nodes; it "
            f"must be that of one. Name one of {names}."
        )
    node_id = matches[0]["NodeID"]
    end_at_ms = int((time.time() + notice_s) * 1000)
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    preemption = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, reason = client.drain_node(node_id, preemption, "rayception drain", end_at_ms)
    if not is_accepted:
        raise ServiceError(f"NODE: got {node}; Ray refuses to drain it ({reason}). See its logs.")
    address = matches[0]["NodeManagerAddress"]
    return {"node": node_id, "address": address, "end_at_ms": end_at_ms}


def wait_until_idle(limit_s: float) -> bool:
    """Waits until no rank runs on this machine; False if one still does after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while _has_ranks():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def _has_ranks() -> bool:
    return any(
        "RayTrainWorker" in " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline"])
    )


def _matches(entry: dict[str, Any], node: str) -> bool:
    if node == "here":
        return bool(entry["NodeID"] == ray.get_runtime_context().get_node_id())
    return node in (entry["NodeManagerAddress"], entry["NodeManagerHostname"]) or (
        len(node) >= 6 and str(entry["NodeID"]).startswith(node)
    )
