"""A trained network, from a run's checkpoint or from a file that `export` wrote; predicting with
it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datasets.images.augment import count_views, resize_views
from datasets.images.decode import decode_image
from datasets.loading.batch import empty_buffer
from datasets.storage.store import Store
from inception.network import InceptionNet, build_network
from inception.precision import autocast_for, to_device_format
from inception.predictions import average_probabilities
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import from_dict
from orchestration.run.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from orchestration.run.metrics import AVERAGE, RAW
from orchestration.run.record import RunRecord, load_record

WEIGHTS = (RAW, AVERAGE)
METADATA = "rayception"  # the key in an exported file


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedNetwork:
    """weights: state dicts by kind: raw, and average if the run kept one. record: None for an
    exported file."""

    url: str
    job: Job
    classes: tuple[str, ...]
    step: int
    weights: dict[str, dict[str, Tensor]] = field(repr=False)
    record: RunRecord | None

    @property
    def best(self) -> str:
        """The kind of weights to use by default."""
        return AVERAGE if AVERAGE in self.weights else RAW

    def check_kind(self, kind: str) -> None:
        """Raises JobError if there are no weights of this kind."""
        if kind not in self.weights:
            raise JobError(
                f"--weights: got {kind}; {self.url} has {', '.join(self.weights)}. "
                "Choose one of them."
            )

    def build(self, kind: str) -> InceptionNet:
        """The network with these weights, in evaluation mode. Raises JobError as check_kind."""
        self.check_kind(kind)
        network = build_network(self.job.model.architecture())
        network.load_state_dict(self.weights[kind])
        return network.eval()


def load_trained(store: Store, url: str) -> TrainedNetwork:
    """url: a run's folder (its newest whole checkpoint), a checkpoint's, or an exported
    .safetensors file's path. Raises JobError, TrainingError, StoreError."""
    if url.endswith(".safetensors"):
        return _load_file(Path(url.removeprefix("file://")))
    if "://" not in url:
        raise JobError(
            f"{url}: got no URL and no .safetensors file; a checkpoint is the URL of a run, "
            "of a checkpoint in it, or an exported file. Write s3://BUCKET/RUN or a path."
        )
    record, chosen, state = find_checkpoint(store, url)
    weights = {RAW: state.model}
    if state.averaged is not None:
        weights[AVERAGE] = state.averaged
    return TrainedNetwork(
        url=chosen,
        job=from_dict(record.job),
        classes=tuple(record.classes),
        step=state.step,
        weights=weights,
        record=record,
    )


def find_checkpoint(store: Store, url: str) -> tuple[RunRecord, str, Checkpoint]:
    """(run's record, URL, state) of the checkpoint at `url`, or of the newest whole one if `url` is
    a run's. Raises JobError if there is no such run or checkpoint; StoreError."""
    url = url.rstrip("/")
    folder, _, name = url.rpartition("/")
    if name.startswith("step-"):
        return load_record(store, folder), url, load_checkpoint(store, url)
    record, newest = load_record(store, url), newest_checkpoint(store, url)
    if newest is None:
        raise JobError(
            f"{url}: got no whole checkpoint; a run writes its first at the end of an epoch. "
            "Wait for it, or name another run."
        )
    return record, *newest


def classify(
    trained: TrainedNetwork, images: Mapping[str, bytes], *, crops: int, kind: str, top: int
) -> list[tuple[str, list[tuple[str, float]]]]:
    """For each image: (its name, [(class, probability), ...] of its `top` most probable classes).
    Uses this machine's GPU if it has one. Raises ImageError for bytes that are not an image."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = trained.build(kind)
    to_device_format(network, device)
    size = trained.job.model.input_size
    predictions = []
    for name, content in images.items():
        image = decode_image(content, name)
        views = empty_buffer(1, size, views=count_views(crops)).images  # (views, 3, S, S)
        resize_views(views, image, crops=crops, fraction=trained.job.data.eval_crop)
        p = average_probabilities(
            [network],
            views,
            views=len(views),
            is_mirrored=crops > 1,
            autocast=autocast_for(device, trained.job.model.precision),
        )[0]  # (C,)
        best = p.topk(min(top, len(p)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        predictions.append((name, [(trained.classes[number], value) for number, value in pairs]))
    return predictions


def export_metadata(trained: TrainedNetwork) -> dict[str, Any]:
    """The metadata of an exported file, as _load_file reads them. Raises JobError."""
    if trained.record is None:
        raise JobError(
            f"{trained.url}: got an exported file; only a run's checkpoint is exported. Name the "
            "URL of the run or of a checkpoint in it."
        )
    job = trained.record.job
    return {
        "job": {key: job[key] for key in ("name", "data", "model", "schedule")},
        "classes": list(trained.classes),
        "step": trained.step,
        "input": "float32 (N, 3, S, S), RGB in -1..1",
    }


def _load_file(path: Path) -> TrainedNetwork:
    try:
        with safetensors.safe_open(path, framework="pt") as content:
            metadata = json.loads((content.metadata() or {})[METADATA])
        return TrainedNetwork(
            url=str(path),
            job=from_dict(metadata["job"]),
            classes=tuple(metadata["classes"]),
            step=metadata["step"],
            weights={RAW: load_file(path)},
            record=None,
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise JobError(
            f"{path}: got no file that `rayception export` wrote ({type(error).__name__}); its "
            "metadata say which network it is. Export one from a run."
        ) from error
