"""Steps whose loss was no finite number: their samples are named in the run's storage, by which a
person finds them and a later attempt knows which steps to leave out."""

import json
from collections.abc import Sequence

from datasets.storage.store import Store

FOLDER = "not-finite"
MAX_SKIPPED = 10  # of such steps, under loss.not_finite: skip; a run with more is ill


def record_samples(store: Store, run_url: str, *, step: int, rank: int, keys: Sequence[str]) -> str:
    """A rank names its samples of a step; -> the folder. Raises StoreError."""
    folder = f"{run_url}/{FOLDER}/step-{step:09d}"
    content = json.dumps({"rank": rank, "step": step, "samples": list(keys)}, indent=1)
    store.write(f"{folder}/rank-{rank}.json", content.encode())
    return folder


def recorded_steps(store: Store, run_url: str) -> list[int]:
    """Steps (the first is 1) that some rank has named. Raises StoreError."""
    found = store.list(f"{run_url}/{FOLDER}/step-")
    return sorted({int(entry.url.rsplit("/", 2)[1].removeprefix("step-")) for entry in found})
