"""The driver's lookout: what a running worker group must leave for, before it happens.

A node that is announced to be taken away (drained), or, for an elastic job, room for more ranks.
The ranks are asked through the board: they write a checkpoint, leave, and begin again elsewhere or
with more of them, so that no step is lost or done twice. Or another driver has taken the run over.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private.state import state

from orchestration.cluster.capacity import measure_capacity, read_nodes
from orchestration.cluster.prestart import start_spares
from orchestration.errors import LeaseLost
from orchestration.job.accelerators import Accelerator
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job

logger = logging.getLogger(__name__)

EVERY_S = 1.0
CLAIM_EVERY_S = 3.0  # a worker group takes longer to start
GROW_AFTER_S = 30.0  # a new group costs some fifteen seconds: it must be worth it
SPARES_AFTER_S = 30.0  # of a group's start: a short run needs none
UNKNOWN_END_S = 30.0  # of a drain without a deadline


class NodeWatcher:
    """One worker group's; a thread of the driver, for the block."""

    def __init__(
        self,
        progress_actor: Any,
        job: Job,
        accelerator: Accelerator,
        *,
        ranks: int,
        check_lease: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        """still_ours: raises TakenOver once the run is another driver's."""
        self._check_lease, self._asked_at = check_lease, 0.0
        self._progress_actor, self._job, self._accelerator = progress_actor, job, accelerator
        self._cluster = job.cluster
        self._spares_at = time.monotonic() + SPARES_AFTER_S
        self._ranks, self._say = ranks, log
        self._done = threading.Event()
        self._known: set[str] = set()
        self._room_since: float | None = None
        self._thread = threading.Thread(target=self._watch, name="lookout", daemon=True)

    def __enter__(self) -> "NodeWatcher":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            try:
                self._look_for_drains()
                if self._cluster.is_elastic:
                    self._look_for_room()
                self._start_spares()
                self._look_for_another_driver()  # last: it waits where storage does not answer
            except Exception as error:  # the cluster is busy or going down: the run says so itself
                logger.debug("lookout: %s", error)

    def _start_spares(self) -> None:
        """Not on one machine with all services, whose cores the ranks have: there they cost a run
        what they spare a death."""
        may_die = self._cluster.max_failures and self._cluster.address != LOCAL
        if may_die and time.monotonic() > self._spares_at:
            self._spares_at = math.inf
            start_spares(
                self._job, ray.get(self._progress_actor.nodes.remote(), timeout=5).values()
            )

    def _look_for_another_driver(self) -> None:
        if time.monotonic() - self._asked_at < CLAIM_EVERY_S:
            return
        self._asked_at = time.monotonic()
        try:
            self._check_lease()
        except LeaseLost:  # the driver says so when the ranks have left
            self._progress_actor.request_stop.remote(0.0)

    def _look_for_drains(self) -> None:
        leaving: dict[str, int] = state.get_draining_nodes() or {}
        unknown = set(leaving) - self._known
        if not unknown:
            return
        ours = set(ray.get(self._progress_actor.nodes.remote(), timeout=5).values())
        for node_id in unknown & ours:
            self._known.add(node_id)
            end_at = leaving[node_id] / 1000 or time.time() + UNKNOWN_END_S
            self._progress_actor.request_stop.remote(end_at)
            self._say(
                f"node {node_id[:8]} will be taken away in {max(0.0, end_at - time.time()):.0f} s; "
                "the ranks save and leave before"
            )

    def _look_for_room(self) -> None:
        target = self._cluster.max_nodes * self._accelerator.count
        more = measure_capacity(self._cluster, self._accelerator, read_nodes()).now
        if self._ranks >= target or more < 1:
            self._room_since = None
            return
        self._room_since = self._room_since or time.monotonic()
        if time.monotonic() - self._room_since > GROW_AFTER_S:
            self._progress_actor.request_stop.remote(time.time())
            self._say(f"room for {min(more, target - self._ranks)} more ranks; growing")
            self._room_since = time.monotonic() + 3600  # asked once
