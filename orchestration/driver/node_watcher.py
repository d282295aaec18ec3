"""Watches for reasons to stop a running worker group at a checkpoint, before it is lost.

A node of its ranks is drained; an elastic job can grow; another driver has taken the run over. The
ranks are asked through the progress actor: they checkpoint, stop, and start again elsewhere or in
greater number, so that no step is lost or repeated.
"""

import logging
import math
import threading
import time
from typing import Any

import ray
from ray._private.state import state

from orchestration.cluster.capacity import measure_capacity, read_nodes
from orchestration.cluster.prestart import start_spares
from orchestration.errors import LeaseLost
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.run.lease import Lease
from orchestration.stack.local import Log

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
LEASE_EVERY_S = 3.0  # a worker group takes longer to start
GROW_AFTER_S = 30.0  # a new group takes some fifteen seconds to start
SPARES_AFTER_S = 30.0  # since the group started: a short run needs none
UNKNOWN_END_S = 30.0  # of a drain without a deadline


class NodeWatcher:
    """Watches one worker group of `ranks` ranks, in a thread, for the block."""

    def __init__(self, progress_actor: Any, job: Job, ranks: int, lease: Lease, log: Log) -> None:
        self._progress_actor, self._job, self._cluster = progress_actor, job, job.cluster
        self._ranks, self._lease, self._log = ranks, lease, log
        self._spares_at = time.monotonic() + SPARES_AFTER_S
        self._lease_checked_at = 0.0
        self._draining: set[str] = set()  # ids of nodes whose ranks were asked to stop
        self._capacity_since: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watcher", daemon=True)

    def __enter__(self) -> "NodeWatcher":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._done.wait(CHECK_EVERY_S):
            try:
                self._check_drains()
                if self._cluster.is_elastic:
                    self._check_capacity()
                self._start_spares()
                self._check_lease()  # last: it blocks while storage does not answer
            except Exception as error:  # the cluster is busy or going down: the run reports it
                logger.debug("node watcher: %s", error)

    def _start_spares(self) -> None:
        """Not on one machine with all services: there, spare processes take more CPU time from the
        ranks than a death would cost."""
        may_die = self._cluster.max_failures and self._cluster.address != LOCAL
        if may_die and time.monotonic() > self._spares_at:
            self._spares_at = math.inf
            start_spares(self._job, self._nodes().values())

    def _check_lease(self) -> None:
        if time.monotonic() - self._lease_checked_at < LEASE_EVERY_S:
            return
        self._lease_checked_at = time.monotonic()
        try:
            self._lease.check()
        except LeaseLost:  # the driver reports it once the ranks have stopped
            self._progress_actor.request_stop.remote(0.0)

    def _check_drains(self) -> None:
        end_ms: dict[str, int] = state.get_draining_nodes() or {}
        new = set(end_ms) - self._draining
        if not new:
            return
        for node_id in new & set(self._nodes().values()):
            self._draining.add(node_id)
            end_at = end_ms[node_id] / 1000 or time.time() + UNKNOWN_END_S
            self._progress_actor.request_stop.remote(end_at)
            self._log(
                f"node {node_id[:8]} will be taken away in {max(0.0, end_at - time.time()):.0f} s; "
                "the ranks save and leave before"
            )

    def _check_capacity(self) -> None:
        accelerator = self._cluster.accelerator
        target = self._cluster.max_nodes * accelerator.count
        more = measure_capacity(self._cluster, accelerator, read_nodes()).now
        if self._ranks >= target or more < 1:
            self._capacity_since = None
            return
        self._capacity_since = self._capacity_since or time.monotonic()
        if time.monotonic() - self._capacity_since > GROW_AFTER_S:
            self._progress_actor.request_stop.remote(time.time())
            self._log(f"room for {min(more, target - self._ranks)} more ranks; growing")
            self._capacity_since = math.inf  # asked once

    def _nodes(self) -> dict[int, str]:
        """Node id by rank."""
        nodes: dict[int, str] = ray.get(self._progress_actor.nodes.remote(), timeout=5)
        return nodes
