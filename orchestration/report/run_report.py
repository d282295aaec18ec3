"""What a run shows of itself: artifacts by the path that they have in MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.loading.device import on_device
from datasets.packing.audit import center_square, read_sample
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from inception.layers import normalize
from inception.mix import Mix, mix
from inception.predictions import Assessment, Predictions
from inception.step import micro_batch_key
from orchestration.job.job import Job
from orchestration.job.plan import Plan
from orchestration.report.html import class_page, confusion_page
from orchestration.report.plots import (
    confusion_matrix,
    image_grid,
    learning_curves,
    rate_and_norm,
    time_split,
)
from orchestration.report.scorecard import class_rows, files_of
from orchestration.worker.loaders import Loaders

MISTAKES = 48
SAMPLES = 32
DRAWN = (
    "train/loss", "val/loss", "val_ema/loss", "val/top1", "val_ema/top1", "val/top5",
    "val_ema/top5", "train/lr", "train/grad_norm", "train/compute_fraction",
    "train/all_reduce_fraction", "train/data_wait_fraction", "train/images_per_second",
    "train/epoch",
)  # fmt: skip


def of_evaluation(
    store: Store, manifest: Manifest, predictions: Predictions, one: Assessment
) -> dict[str, bytes]:
    """Tables and pictures of what was said of a split, and what it came to. Raises StoreError."""
    classes = manifest.classes
    found = {name: text.encode() for name, text in files_of(one, predictions, classes).items()}
    return found | {
        "confusion.png": confusion_matrix(one.confusion, classes),
        "confusion.html": confusion_page(one.confusion, classes).encode(),
        "classes.html": class_page(class_rows(one, classes)).encode(),
        "mistakes.png": _mistakes(store, manifest, predictions),
    }


def _mistakes(store: Store, manifest: Manifest, predictions: Predictions) -> bytes:
    """The images that were wrong most surely."""
    wrong = (predictions.best[:, 0] != predictions.targets).nonzero()[:, 0]
    order = predictions.best_p[wrong, 0].argsort(descending=True, stable=True)
    images, captions = [], []
    for row in wrong[order][:MISTAKES].tolist():
        shard, number = predictions.samples[row].tolist()
        try:
            image, _ = read_sample(store, manifest, shard, number)
        except DataError:  # it was whole when it was scored
            continue
        truth = manifest.classes[int(predictions.targets[row])]
        said = manifest.classes[int(predictions.best[row, 0])]
        images.append(center_square(image))
        p = 100 * float(predictions.best_p[row, 0])
        captions.append(f"{truth[:16]}\nsaid {said[:16]}, {p:.0f} %")
    return image_grid(images, captions, "Most surely wrong")


def of_history(points: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, bytes]:
    """Curves of a run, from its points by key (DRAWN)."""
    clock = points.get("train/epoch") or [(1, 1.0)]
    step, epoch = clock[-1]
    per_step = epoch / max(step, 1)

    def epoch_of(step: int) -> float:
        return step * per_step

    return {
        "learning-curves.png": learning_curves(points, epoch_of),
        "rate-and-norm.png": rate_and_norm(points, epoch_of),
        "time.png": time_split(points, epoch_of),
    }


def of_samples(job: Job, plan: Plan, store: Store, train: Manifest) -> bytes:
    """The first training samples as the network sees them: cut, mirrored, coloured, mixed.

    Raises DataError, StoreError.
    """
    feed = Loaders(
        job=job, plan=replace(plan, loader_workers=0), store=store, rank=0, world_size=1,
        decoder=None,
    )  # fmt: skip
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    with feed.train_loader(train, step=0) as loader:
        for batch in next(iter(loader)):
            if len(images) >= SAMPLES:
                break
            key = micro_batch_key(job.seed, 0, batch.index)
            torch.manual_seed(key)
            moved = on_device(batch, torch.device("cpu"))
            mixed, _ = mix(
                normalize(moved.images), Mix(mixup=job.loss.mixup, cutmix=job.loss.cutmix), key
            )  # (m, 3, S, S)
            shown = ((mixed.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            images += [np.ascontiguousarray(one) for one in shown.permute(0, 2, 3, 1).numpy()]
            captions += [train.classes[int(target)][:16] for target in batch.targets]
    return image_grid(
        images[:SAMPLES], captions[:SAMPLES], "First training samples, as the network sees them"
    )
