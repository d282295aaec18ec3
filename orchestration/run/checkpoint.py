"""TrainState <-> checkpoint folder.

A checkpoint is `state.pt` (torch.save, read with weights_only=True) and `checkpoint.json`, which
holds the size and SHA-256 of every file and is written last. It counts only when that file is
there and everything agrees with it: a half-written one is never loaded, the one before is used.
The state names no world size: any number of ranks can go on from it. torch is imported where
tensors are read or written: a driver lists checkpoints and needs none.
"""

import contextlib
import hashlib
import io
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from datasets.errors import DataError
from datasets.storage.store import Store
from orchestration.errors import TrainingError
from orchestration.run.metrics import top1_of

logger = logging.getLogger(__name__)

FORMAT = 2
STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that training needs to go on after `step` finished optimizer steps.

    `data` says which sequence of samples the steps walked (seed, order, manifest fingerprint):
    together with the step it is the position in the data. `metrics`: what the last evaluation said,
    and the speed.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    data: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def top1(self) -> float | None:
        """Of the averaged weights where an average is kept; None before the first evaluation."""
        return top1_of(self.metrics)

    @property
    def averaged(self) -> dict[str, Any] | None:
        """The state dict of the averaged weights, where an average is kept. The average has every
        float of the state; the counts of batches are the model's."""
        return None if self.average is None else self.model | self.average["tensors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a checkpoint says of itself without its tensors."""

    url: str
    step: int
    metrics: dict[str, float]

    @property
    def top1(self) -> float | None:
        return top1_of(self.metrics)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps; sorts by step."""
    return f"step-{step:09d}"


def save_checkpoint(store: Store, run_url: str, state: Checkpoint) -> str:
    """Writes the checkpoint below `run_url` (one rank calls it); -> its URL.

    Raises StoreError where the storage refuses.
    """
    return write_checkpoint(store, run_url, state, encode(state))


def copied(state: Checkpoint) -> Checkpoint:
    """The state on the CPU, its tensors copied: what trains on may change its own afterwards."""
    import torch
    from torch.utils._pytree import tree_map

    def copy(value: Any) -> Any:
        return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

    return replace(
        state,
        model=tree_map(copy, state.model),
        optimizer=tree_map(copy, state.optimizer),
        average=tree_map(copy, state.average),
    )


def encode(state: Checkpoint) -> bytes:
    """The state as the bytes of its file."""
    import torch

    buffer = io.BytesIO()
    torch.save(
        {
            "step": state.step,
            "model": state.model,
            "optimizer": state.optimizer,
            "average": state.average,
            "data": state.data,
            "metrics": state.metrics,
        },
        buffer,
    )
    return buffer.getvalue()


def write_checkpoint(store: Store, run_url: str, state: Checkpoint, content: bytes) -> str:
    """Writes encoded content below `run_url`, its index last; -> its URL. Raises StoreError."""
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
        "top1": state.top1,
        "metrics": state.metrics,
    }
    store.write(f"{url}/{INDEX_FILE}", json.dumps(index, indent=2).encode())
    return url


def prune_checkpoints(store: Store, run_url: str, *, keep: int) -> None:
    """Leaves the newest `keep` whole checkpoints and the best by top-1, and what is newer than
    those: a torn one there must not count for one of them.

    One rank calls it. An index goes first, so that what is left of a deletion never counts.
    Raises StoreError.
    """
    names = checkpoint_names(store, run_url)
    if len(names) <= keep:
        return
    top1 = top1_by_name(store, run_url)
    if not top1:
        return
    best = max(top1, key=lambda name: (top1[name], name))
    kept = {*list(top1)[-keep:], best}
    for name in names:
        if name not in kept and name < max(top1):
            for file in (INDEX_FILE, STATE_FILE):
                store.delete(f"{run_url}/{name}/{file}")


def checkpoint_names(store: Store, run_url: str) -> list[str]:
    """Folder names of the checkpoints below `run_url`, whole or not, by step."""
    return sorted({entry.url.rsplit("/", 2)[1] for entry in store.list(f"{run_url}/step-")})


def checkpoint_tags(store: Store, run_url: str) -> dict[str, str]:
    """Where a run's last and best checkpoints lie, as MLflow tags. Raises StoreError."""
    top1 = top1_by_name(store, run_url)
    if not top1:
        return {}
    best = max(top1, key=lambda name: (top1[name], name))
    return {
        "rayception.checkpoint.last": f"{run_url}/{max(top1)}",
        "rayception.checkpoint.best": f"{run_url}/{best}",
    }


def top1_by_name(store: Store, run_url: str) -> dict[str, float]:
    """Of the whole checkpoints, -1 where nothing was scored. Raises StoreError."""
    top1: dict[str, float] = {}
    for name in checkpoint_names(store, run_url):
        with contextlib.suppress(DataError, ValueError):  # no index, or half of one
            said = json.loads(store.read(f"{run_url}/{name}/{INDEX_FILE}")).get("top1")
            top1[name] = -1.0 if said is None else said
    return top1


def newest_checkpoint(store: Store, run_url: str) -> tuple[str, Checkpoint] | None:
    """(URL, state) of the newest checkpoint below `run_url` that is whole, or None."""
    return _newest(store, run_url, lambda store, url: (url, load_checkpoint(store, url)))


def newest_summary(store: Store, run_url: str) -> Summary | None:
    """Of the newest checkpoint below `run_url` that is whole, or None; torch stays away. Raises
    StoreError."""
    return _newest(store, run_url, _load_summary)


def _newest(store: Store, run_url: str, read: Callable[[Store, str], Found]) -> Found | None:
    """What `read` makes of the newest one that it does not refuse with TrainingError."""
    for name in reversed(checkpoint_names(store, run_url)):
        try:
            return read(store, f"{run_url}/{name}")
        except TrainingError as error:
            logger.warning("%s; the one before is used", error)
    return None


def _load_summary(store: Store, url: str) -> Summary:
    index, content = _read_whole(store, url)
    metrics = index.get("metrics")
    if metrics is None:  # of an earlier version
        metrics = _decode(url, content).metrics
    return Summary(url=url, step=index["step"], metrics=metrics)


def load_checkpoint(store: Store, url: str) -> Checkpoint:
    """Reads a checkpoint on the CPU.

    Raises TrainingError where it is incomplete, damaged or of another format, StoreError where
    the storage cannot be reached.
    """
    return _decode(url, _read_whole(store, url)[1])


def _read_whole(store: Store, url: str) -> tuple[dict[str, Any], bytes]:
    """A checkpoint's index, and its state's bytes, which are those that it names. Raises
    TrainingError, StoreError."""
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
    return index, content


def _decode(url: str, content: bytes) -> Checkpoint:
    """The state, on the CPU, that `encode` wrote. Raises TrainingError."""
    import torch

    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise TrainingError(
            f"{url}/{STATE_FILE}: got something else than tensors; nothing else is loaded from "
            "storage. Find out who wrote it, and use an older checkpoint."
        ) from error
    return Checkpoint(**values)
