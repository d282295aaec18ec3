"""What the driver hands to every rank, and what Ray Train runs there.

Apart from the ranks' own code, so that a driver, which makes both, imports no torch for them.
"""

from dataclasses import dataclass
from typing import Any

from datasets.storage.store import StoreConfig
from orchestration.job.plan import Plan
from orchestration.tracking.run_ref import RunRef


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Plain values, no secret among them."""

    job: dict[str, Any]
    plan: Plan
    run: RunRef
    run_url: str
    store: StoreConfig
    progress_actor: Any  # the progress actor
    attempt: int  # 1 for the first worker group


def train_loop(config: dict[str, WorkerConfig]) -> None:
    """Entry of Ray Train on each rank. Raises TrainingError, DataError or StoreError."""
    from orchestration.worker.train_loop import Rank

    Rank(config["config"]).train()
