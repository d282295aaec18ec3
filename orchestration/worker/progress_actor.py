"""What a run is doing right now, and what is wanted of it: rank 0 posts, the driver reads and asks.

A tiny actor, because `ray.train.report` is a barrier that the controller drains once a poll. Rank 0
posts without waiting; the answer, what the ranks are to do, is read at its next post.
"""

import time
from enum import IntEnum
from typing import Any

import ray

from orchestration.run.progress import Progress

# Before a node's end: two looks of the ranks, a checkpoint as long as the last one twice over.
STOP_MARGIN_S = 8.0
MAX_SAMPLES = 10_000


class Command(IntEnum):
    """What the ranks are to do at their next look."""

    CONTINUE = 0
    CHECKPOINT = 1
    STOP = 2  # after a checkpoint


class ProgressActor:
    """Holds the newest progress and the newest wish; an actor without CPU."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._attempts = 0
        self._nodes: dict[int, str] = {}
        self._phases: dict[str, float] = {}  # seconds, of the present attempt
        self._began = time.time()  # the present attempt
        self._end_at: float | None = None  # when a wish to leave must have been met (Unix time)
        self._is_saved = False
        self._system_metrics: list[tuple[str, float, dict[str, float]]] = []

    def start_attempt(self) -> int:
        """Counts a new worker group and forgets what was wanted of the last; -> 1 for the first."""
        self._attempts += 1
        self._nodes, self._end_at, self._is_saved = {}, None, False
        self._progress = None
        self._phases, self._began = {}, time.time()
        return self._attempts

    def join(self, rank: int, node_id: str) -> None:
        """A rank of the present attempt stands ready for its first step, on that node."""
        self._nodes[rank] = node_id
        self._phases["workers"] = time.time() - self._began

    def nodes(self) -> dict[int, str]:
        """Node id by rank, of the present attempt."""
        return self._nodes

    def request_stop(self, end_at: float) -> None:
        """The ranks are to have saved and left by `end_at` (Unix time, seconds)."""
        self._end_at = end_at if self._end_at is None else min(end_at, self._end_at)

    def report(self, progress: Progress) -> Command:
        self._progress = progress
        if self._end_at is None:
            return Command.CONTINUE
        if time.time() > self._end_at - STOP_MARGIN_S - 2 * progress["checkpoint_s"]:
            return Command.STOP
        if not self._is_saved:  # at the notice, lest the node goes sooner than it said
            self._is_saved = True
            return Command.CHECKPOINT
        return Command.CONTINUE

    def show(self, progress: Progress) -> None:
        """Progress that asks for no answer."""
        self._progress = progress

    def add_system_metrics(self, node: str, values: dict[str, float]) -> None:
        """A node says what it is busy with."""
        if len(self._system_metrics) < MAX_SAMPLES:  # nobody takes them where the driver hangs
            self._system_metrics.append((node, time.time(), values))

    def take_system_metrics(self) -> list[tuple[str, float, dict[str, float]]]:
        """(node, Unix time, values), each once."""
        taken, self._system_metrics = self._system_metrics, []
        return taken

    def add_phase_seconds(self, phase: str, seconds: float) -> None:
        """The ranks of the present attempt spent time on a phase."""
        self._phases[phase] = self._phases.get(phase, 0.0) + seconds

    def phases(self) -> dict[str, float]:
        """Seconds by phase of the present attempt: until the last rank was ready, evaluations."""
        return self._phases

    def read(self) -> Progress | None:
        return self._progress


def start_progress_actor() -> Any:
    """The actor, owned by the driver: it ends with it. It stays on the driver's node."""
    here = ray.get_runtime_context().get_node_id()
    stay = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=stay)(ProgressActor).remote()
