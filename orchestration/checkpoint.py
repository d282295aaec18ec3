"""TrainState <-> checkpoint folder.

A checkpoint is `state.pt` (torch.save, read with weights_only=True) and `checkpoint.json`, which
holds the size and SHA-256 of every file and is written last. It counts only when that file is
there and everything agrees with it: a half-written one is never loaded, the one before is used.
The state names no world size: any number of ranks can go on from it.
"""

import hashlib
import io
import json
import logging
import pickle
from dataclasses import dataclass, field
from typing import Any

import torch

from datasets.errors import DataError
from datasets.store import Store
from orchestration.errors import TrainingError

logger = logging.getLogger(__name__)

FORMAT = 1
STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """All that training needs to go on after `step` finished optimizer steps.

    `data` says which sequence of samples the steps walked (seed, order, manifest fingerprint):
    together with the step it is the position in the data. `unsent_metrics` are the points that
    MLflow had not taken yet (tracking.Point), so that a restart loses none.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    data: dict[str, Any]
    unsent_metrics: list[tuple[str, float, int, int]] = field(default_factory=list)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps; sorts by step."""
    return f"step-{step:09d}"


def save_checkpoint(store: Store, run_url: str, state: TrainState) -> str:
    """Writes the checkpoint below `run_url` (one rank calls it); -> its URL.

    Raises StoreError where the storage refuses.
    """
    buffer = io.BytesIO()
    torch.save(
        {
            "step": state.step,
            "model": state.model,
            "optimizer": state.optimizer,
            "average": state.average,
            "data": state.data,
            "unsent_metrics": state.unsent_metrics,
        },
        buffer,
    )
    content = buffer.getvalue()
    url = f"{run_url}/{checkpoint_name(state.step)}"
    store.write(f"{url}/{STATE_FILE}", content)
    index = {
        "format": FORMAT,
        "step": state.step,
        "files": {
            STATE_FILE: {
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        },
        "data": state.data,
    }
    store.write(f"{url}/{INDEX_FILE}", json.dumps(index, indent=2).encode())
    return url


def newest_checkpoint(store: Store, run_url: str) -> str | None:
    """URL of the newest checkpoint below `run_url` that is whole, or None."""
    names = {entry.url.rsplit("/", 2)[1] for entry in store.list(f"{run_url}/step-")}
    for name in sorted(names, reverse=True):
        url = f"{run_url}/{name}"
        try:
            load_checkpoint(store, url)
        except TrainingError as error:
            logger.warning("%s; the one before is used", error)
            continue
        return url
    return None


def load_checkpoint(store: Store, url: str) -> TrainState:
    """Reads a checkpoint on the CPU.

    Raises TrainingError where it is incomplete, damaged or of another format, StoreError where
    the storage cannot be reached.
    """
    try:
        index = json.loads(store.read(f"{url}/{INDEX_FILE}"))
        content = store.read(f"{url}/{STATE_FILE}")
    except (DataError, ValueError) as error:
        raise TrainingError(
            f"{url}: got an incomplete checkpoint ({type(error).__name__}); {INDEX_FILE} is "
            "written last and names every file. Use an older one."
        ) from error
    if index.get("format") != FORMAT:
        raise TrainingError(
            f"{url}: got checkpoint format {index.get('format')}; this version reads {FORMAT}. "
            "Use the rayception that wrote it."
        )
    stated = index["files"][STATE_FILE]
    if len(content) != stated["size_bytes"] or (
        hashlib.sha256(content).hexdigest() != stated["sha256"]
    ):
        raise TrainingError(
            f"{url}/{STATE_FILE}: got {len(content)} bytes with another checksum; {INDEX_FILE} "
            f"says {stated['size_bytes']}. The file is damaged: use an older checkpoint."
        )
    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise TrainingError(
            f"{url}/{STATE_FILE}: got something else than tensors; nothing else is loaded from "
            "storage. Find out who wrote it, and use an older checkpoint."
        ) from error
    return TrainState(**values)
