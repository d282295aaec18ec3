"""A run's checkpoints in storage, a folder each.

A checkpoint is `state.pt` (torch.save, read with weights_only=True) and `checkpoint.json`, which
holds the size and SHA-256 of the state and a checksum of itself, and is written last. A checkpoint
is whole if this index exists and matches the state; others are never loaded, and the newest whole
one is used instead. The state does not depend on the world size: any number of ranks can resume
from it. torch is imported only by functions that read or write tensors: a driver lists checkpoints
without it.
"""

import contextlib
import hashlib
import io
import logging
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from datasets.errors import DataError
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store
from orchestration.errors import TrainingError
from orchestration.run.digest import state_digest
from orchestration.run.metrics import top1_of

logger = logging.getLogger(__name__)

FORMAT = 2
STATE_FILE = "state.pt"
INDEX_FILE = "checkpoint.json"
DIGEST_TAG = "rayception.digest"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that training needs to go on after `step` finished steps. The names of the fields are the
    keys of the file.

    data: what determines the sequence of samples (seed, order, manifest fingerprint); together with
    the step, the position in the data. metrics: of the last evaluation, and the speed.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    data: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def averaged(self) -> dict[str, Any] | None:
        """The state dict of the averaged weights, if an average is kept: it holds every float; the
        counts of batches are the model's."""
        return None if self.average is None else self.model | self.average["tensors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSummary:
    """A checkpoint without its tensors."""

    url: str
    step: int
    metrics: dict[str, float]
    digest: str | None  # None: of an earlier version

    @property
    def top1(self) -> float | None:
        return top1_of(self.metrics)


def checkpoint_name(step: int) -> str:
    """Folder name; sorts by step."""
    return f"step-{step:09d}"


def save_checkpoint(store: Store, run_url: str, state: Checkpoint) -> str:
    """Writes the checkpoint below `run_url`, its index last; -> its URL. Raises StoreError."""
    url = f"{run_url}/{checkpoint_name(state.step)}"
    content = encode_tensors(state)
    store.write(f"{url}/{STATE_FILE}", content)
    sha256 = hashlib.sha256(content).hexdigest()
    index = {
        "format": FORMAT,
        "step": state.step,
        "files": {STATE_FILE: {"size_bytes": len(content), "sha256": sha256}},
        "data": state.data,
        "digest": state_digest(state),
        "top1": top1_of(state.metrics),
        "metrics": state.metrics,
    }
    store.write(f"{url}/{INDEX_FILE}", encode_json(index, indent=2))
    return url


def copy_to_cpu(state: Checkpoint) -> Checkpoint:
    """A copy whose tensors are on the CPU, so that training may change its own."""
    import torch
    from torch.utils._pytree import tree_map

    def copy(value: Any) -> Any:
        return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

    model, optimizer, average = tree_map(copy, (state.model, state.optimizer, state.average))
    return replace(state, model=model, optimizer=optimizer, average=average)


def prune_checkpoints(store: Store, run_url: str, *, keep: int) -> None:
    """Deletes all but the newest `keep` whole checkpoints and the best by top-1. Incomplete ones
    that are newer stay, without counting as any of them.

    An index is deleted first, so that an interrupted deletion leaves nothing whole. Raises
    StoreError.
    """
    sizes = _file_sizes(store, run_url)
    names = _names(sizes)
    if len(names) <= keep:
        return
    indexes = _whole_indexes(store, run_url, sizes)
    if not indexes:
        return
    top1 = _top1_by_name(indexes)
    retained = {*list(top1)[-keep:], _best(top1)}
    for name in names:
        if name not in retained and name < max(top1):
            for file in (INDEX_FILE, STATE_FILE):
                store.delete(f"{run_url}/{name}/{file}")


def checkpoint_names(store: Store, run_url: str) -> list[str]:
    """Folder names of the checkpoints below `run_url`, whole or not, by step. Raises StoreError."""
    return _names(_file_sizes(store, run_url))


def checkpoint_tags(store: Store, run_url: str) -> dict[str, str]:
    """URLs of a run's last and best checkpoints, and the last one's digest, as MLflow tags. Raises
    StoreError."""
    indexes = _whole_indexes(store, run_url, _file_sizes(store, run_url))
    if not indexes:
        return {}
    last = max(indexes)
    tags = {
        "rayception.checkpoint.last": f"{run_url}/{last}",
        "rayception.checkpoint.best": f"{run_url}/{_best(_top1_by_name(indexes))}",
    }
    if "digest" in indexes[last]:
        tags[DIGEST_TAG] = f"step {indexes[last]['step']}: {indexes[last]['digest']}"
    return tags


def _file_sizes(store: Store, run_url: str) -> dict[str, int]:
    """Bytes of each file of the run's checkpoints, by URL. Raises StoreError."""
    return {entry.url: entry.size_bytes for entry in store.list(f"{run_url}/step-")}


def _names(urls: Iterable[str]) -> list[str]:
    return sorted({url.rsplit("/", 2)[1] for url in urls})


def _whole_indexes(store: Store, run_url: str, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The indexes of the checkpoints that are whole as far as their index and the size of their
    state tell, by name. sizes: of `_file_sizes`. Raises StoreError."""
    indexes: dict[str, dict[str, Any]] = {}
    for name in _names(sizes):
        with contextlib.suppress(DataError, ValueError):  # no index, or a damaged one
            index = decode_json(store.read(f"{run_url}/{name}/{INDEX_FILE}"))
            size = sizes.get(f"{run_url}/{name}/{STATE_FILE}")
            if index.get("format") == FORMAT and index["files"][STATE_FILE]["size_bytes"] == size:
                indexes[name] = index
    return indexes


def _top1_by_name(indexes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """-1 without an evaluation."""
    top1 = {name: index.get("top1") for name, index in indexes.items()}
    return {name: -1.0 if value is None else value for name, value in top1.items()}


def _best(top1: dict[str, float]) -> str:
    return max(top1, key=lambda name: (top1[name], name))


def newest_checkpoint(store: Store, run_url: str) -> tuple[str, Checkpoint] | None:
    """(URL, state) of the newest whole checkpoint below `run_url`. Raises StoreError."""
    return _newest(store, run_url, lambda store, url: (url, load_checkpoint(store, url)))


def newest_summary(store: Store, run_url: str) -> CheckpointSummary | None:
    """As `newest_checkpoint`, without torch."""
    return _newest(store, run_url, _load_summary)


def _newest(store: Store, run_url: str, read: Callable[[Store, str], T]) -> T | None:
    for name in reversed(checkpoint_names(store, run_url)):
        try:
            return read(store, f"{run_url}/{name}")
        except TrainingError as error:
            logger.warning("%s; the one before is used", error)
    return None


def _load_summary(store: Store, url: str) -> CheckpointSummary:
    index, content = _read_whole(store, url)
    metrics = index.get("metrics")
    if metrics is None:  # of an earlier version
        metrics = _decode(url, content).metrics
    digest = index.get("digest")
    return CheckpointSummary(url=url, step=index["step"], metrics=metrics, digest=digest)


def load_checkpoint(store: Store, url: str) -> Checkpoint:
    """Its tensors are on the CPU. Raises TrainingError if the checkpoint is not whole or of another
    format, StoreError."""
    return _decode(url, _read_whole(store, url)[1])


def _read_whole(store: Store, url: str) -> tuple[dict[str, Any], bytes]:
    """A checkpoint's index, and the content of its state. Raises as `load_checkpoint`."""
    try:
        encoded = store.read(f"{url}/{INDEX_FILE}")
        content = store.read(f"{url}/{STATE_FILE}")
    except DataError as error:
        raise TrainingError(
            f"{url}: got an incomplete checkpoint ({type(error).__name__}); {INDEX_FILE} is "
            "written last and names every file. Use an older one."
        ) from error
    try:
        index = decode_json(encoded)
    except ValueError as error:
        raise TrainingError(
            f"{url}/{INDEX_FILE}: got {error}; the file is damaged. Use an older checkpoint."
        ) from error
    if index.get("format") != FORMAT:
        raise TrainingError(
            f"{url}: got checkpoint format {index.get('format')}; this version reads {FORMAT}. "
            "Use the rayception that wrote it."
        )
    expected = index["files"][STATE_FILE]
    sha256 = hashlib.sha256(content).hexdigest()
    if (len(content), sha256) != (expected["size_bytes"], expected["sha256"]):
        raise TrainingError(
            f"{url}/{STATE_FILE}: got {len(content)} bytes with another checksum; {INDEX_FILE} "
            f"says {expected['size_bytes']}. The file is damaged: use an older checkpoint."
        )
    return index, content


def encode_tensors(values: Any) -> bytes:
    """torch.save of a dataclass's fields, by name."""
    import torch

    buffer = io.BytesIO()
    torch.save({f.name: getattr(values, f.name) for f in fields(values)}, buffer)
    return buffer.getvalue()


def _decode(url: str, content: bytes) -> Checkpoint:
    """Raises TrainingError."""
    import torch

    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise TrainingError(
            f"{url}/{STATE_FILE}: got something other than tensors; nothing else is loaded from "
            "storage. Find out who wrote it, and use an older checkpoint."
        ) from error
    return Checkpoint(**values)
