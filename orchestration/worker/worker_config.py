"""What the driver passes to every rank. Separate from the ranks' code, which imports torch."""

from dataclasses import dataclass
from typing import Any

from datasets.storage.store import StoreConfig
from orchestration.job.plan import Plan
from orchestration.tracking.run_ref import RunRef


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """Holds no credentials: Ray pickles it."""

    job: dict[str, Any]  # as load.to_dict writes it
    plan: Plan
    run: RunRef
    run_url: str
    store: StoreConfig
    progress_actor: Any
    attempt: int  # 1 for the first worker group
