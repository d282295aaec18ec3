"""Steps whose loss was not finite. Their samples are recorded in the run's storage, for a person to
look at and for later attempts to skip those steps."""

import json
from collections.abc import Sequence

from datasets.storage.store import Store

FOLDER = "not-finite"
MAX_SKIPPED = 10  # steps of a run, under loss.not_finite: skip; with more, something is wrong


def record_samples(store: Store, run_url: str, rank: int, step: int, keys: Sequence[str]) -> str:
    """Records the names of one rank's samples in a step; -> the folder. Raises StoreError."""
    folder = f"{run_url}/{FOLDER}/step-{step:09d}"
    content = json.dumps({"rank": rank, "step": step, "samples": list(keys)}, indent=1)
    store.write(f"{folder}/rank-{rank}.json", content.encode())
    return folder


def recorded_steps(store: Store, run_url: str) -> list[int]:
    """Steps (the first is 1) that any rank has recorded. Raises StoreError."""
    entries = store.list(f"{run_url}/{FOLDER}/step-")
    return sorted({int(entry.url.rsplit("/", 2)[1].removeprefix("step-")) for entry in entries})
