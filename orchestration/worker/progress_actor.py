"""The actor between ranks and driver: rank 0 reports progress, the driver reads it and requests
checkpoints and stops.

An actor, because `ray.train.report` is a barrier that Ray's controller serves once per poll. Rank 0
does not wait for it: the reply to a report, a command, is read at the first sync that it precedes.
"""

import time
from enum import IntEnum
from typing import Any

import ray

from orchestration.run.progress import Progress

# Before a node's end: two syncs of the ranks; a checkpoint's write time, twice, comes on top.
STOP_MARGIN_S = 8.0
MAX_SAMPLES = 10_000


class Command(IntEnum):
    """What the ranks do after their next sync; the highest of several."""

    CONTINUE = 0
    CHECKPOINT = 1
    STOP = 2  # after a checkpoint


class ProgressActor:
    """The newest progress, and the newest request to the ranks; of the current attempt, unless
    stated otherwise."""

    def __init__(self) -> None:
        self._attempts = 0
        self._system_metrics: list[tuple[str, float, dict[str, float]]] = []  # of all attempts
        self._reset()

    def _reset(self) -> None:
        self._progress: Progress | None = None
        self._nodes: dict[int, str] = {}
        self._phases: dict[str, float] = {}
        self._start_time = time.time()
        self._stop_by: float | None = None  # Unix time
        self._has_requested_checkpoint = False

    def start_attempt(self) -> int:
        """Counts a new worker group, and drops the state of the last one; -> 1 for the first."""
        self._attempts += 1
        self._reset()
        return self._attempts

    def join(self, rank: int, node_id: str) -> None:
        """A rank is ready for its first step, on that node."""
        self._nodes[rank] = node_id
        self._phases["workers"] = time.time() - self._start_time

    def nodes(self) -> dict[int, str]:
        """Node id by rank."""
        return self._nodes

    def request_stop(self, stop_by: float) -> None:
        """Asks the ranks to checkpoint and stop by then (Unix time, seconds)."""
        self._stop_by = stop_by if self._stop_by is None else min(stop_by, self._stop_by)

    def report(self, progress: Progress) -> Command:
        """Stores progress; -> the command for the ranks."""
        self._progress = progress
        if self._stop_by is None:
            return Command.CONTINUE
        if time.time() > self._stop_by - STOP_MARGIN_S - 2 * progress["checkpoint_s"]:
            return Command.STOP
        if not self._has_requested_checkpoint:  # at once: the node may end before its deadline
            self._has_requested_checkpoint = True
            return Command.CHECKPOINT
        return Command.CONTINUE

    def read(self) -> Progress | None:
        return self._progress

    def add_system_metrics(self, node: str, values: dict[str, float]) -> None:
        if len(self._system_metrics) < MAX_SAMPLES:  # a driver that hangs takes none
            self._system_metrics.append((node, time.time(), values))

    def take_system_metrics(self) -> list[tuple[str, float, dict[str, float]]]:
        """(node, Unix time, values), each once."""
        taken, self._system_metrics = self._system_metrics, []
        return taken

    def add_phase_seconds(self, phase: str, seconds: float) -> None:
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def phases(self) -> dict[str, float]:
        """Seconds by phase: until the last rank was ready (`workers`), and of evaluations."""
        return self._phases


def start_progress_actor() -> Any:
    """Starts the actor on the driver's node, without a CPU; it ends with the driver."""
    node_id = ray.get_runtime_context().get_node_id()
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=on_node)(ProgressActor).remote()
