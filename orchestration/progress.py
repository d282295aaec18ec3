"""What a run is doing right now: rank 0 posts it, the driver shows it.

A tiny actor, because `ray.train.report` is a barrier that the controller drains once a poll. Rank
0 posts without waiting for an answer; a lost post costs nothing but a stale line.
"""

from typing import Any, TypedDict

import ray


class Progress(TypedDict):
    """One moment of a run."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    images_per_second: float
    data_wait_fraction: float
    top1: float | None  # of the last evaluation, percent
    attempt: int


class Board:
    """Holds the newest progress; an actor without CPU."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._attempts = 0

    def begin_attempt(self) -> int:
        """Counts a new worker group; -> 1 for the first."""
        self._attempts += 1
        return self._attempts

    def post(self, progress: Progress) -> None:
        self._progress = progress

    def read(self) -> Progress | None:
        return self._progress

    def count_attempts(self) -> int:
        return self._attempts


def make_board() -> Any:
    """The actor, owned by the driver: it ends with it. It stays on the driver's node."""
    return ray.remote(num_cpus=0)(Board).remote()
