"""Wall time of a run by phase.

| phase | what it spans |
|---|---|
| command | from the start of the process until the command has read its job |
| stack | starting the services of this machine, with the driver's imports beside it |
| ray | joining the cluster |
| imports | the driver's remaining imports; the ranks' imports start beside them |
| preflight | checks, capacity, data, plan |
| mlflow | opening the run |
| workers | starting the worker group, until every rank is ready for its first step |
| steps, evaluation | the ranks' work |
| end | plots, the model, ending the run |
"""

import time
from collections.abc import Mapping

STARTUP = ("command", "stack", "ray", "imports", "preflight", "mlflow", "workers")
PHASES = (*STARTUP, "steps", "evaluation", "end")


class Phases:
    """Seconds by phase, in order."""

    def __init__(self, start_time: float | None = None) -> None:
        """start_time: of the first phase, Unix time in seconds; None: now."""
        self._last = time.time() if start_time is None else start_time
        self.seconds: dict[str, float] = {}

    @classmethod
    def of_process(cls) -> "Phases":
        """From the start of this process."""
        import psutil

        return cls(psutil.Process().create_time())

    def end(self, name: str) -> None:
        """Adds the time since the last call, or since the start, to this phase."""
        now = time.time()
        elapsed_s = max(0.0, now - self._last)  # the clock may go back
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed_s
        self._last = now


def split_training(training_s: float, phases_of_ranks: Mapping[str, float]) -> dict[str, float]:
    """Splits the time that a driver waited for its ranks by phase. phases_of_ranks: the progress
    actor's `workers` and `evaluation`."""
    seconds = {name: phases_of_ranks.get(name, 0.0) for name in ("workers", "evaluation")}
    return seconds | {"steps": max(0.0, training_s - sum(seconds.values()))}
