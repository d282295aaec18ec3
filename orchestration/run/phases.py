"""Where the time of a run's start and end goes, phase after phase. Pure, but for the clock.

| phase | from its start to its end |
|---|---|
| command | the process, until the verb knows its job |
| stack | services of this machine, until each answers; the driver's imports beside it |
| ray | joining the cluster |
| imports | what the driver still imports; the ranks' own imports begin beside it |
| preflight | checks, room, data, plan |
| mlflow | the run opened |
| workers | the worker group, until every rank stands ready for its first step |
| steps, evaluation | what the ranks do |
| end | pictures, the model, the run closed |
"""

import time
from collections.abc import Mapping

STARTUP = ("command", "stack", "ray", "imports", "preflight", "mlflow", "workers")
PHASES = (*STARTUP, "steps", "evaluation", "end")


class Phases:
    """Seconds by phase, in their order."""

    def __init__(self, began: float | None = None) -> None:
        """began: Unix time, in seconds; None: now."""
        self._last = time.time() if began is None else began
        self.seconds: dict[str, float] = {}

    @classmethod
    def of_process(cls) -> "Phases":
        """From the start of this process."""
        import psutil

        return cls(psutil.Process().create_time())

    def end(self, name: str) -> None:
        """The time since the last call, or since the begin, was this phase's."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def split(training_s: float, of_ranks: Mapping[str, float]) -> dict[str, float]:
    """The seconds between two words of a driver, in which its ranks trained, by phase; of_ranks:
    the board's `workers` and `evaluation`."""
    known = {name: of_ranks.get(name, 0.0) for name in ("workers", "evaluation")}
    return known | {"steps": max(0.0, training_s - sum(known.values()))}
