"""The report of a run: file contents by the name that they have in MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.errors import DataError
from datasets.loading.device import to_device
from datasets.packing.audit import center_square, read_sample
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from inception.layers import normalize
from inception.mix import MixConfig, mix_groups
from inception.predictions import Evaluation, Predictions
from inception.row_groups import count_groups, sort_by_group
from inception.step import group_keys
from orchestration.job.job import Job
from orchestration.job.plan import Plan
from orchestration.report import plots
from orchestration.report.html import class_page, confusion_page
from orchestration.report.scorecard import class_accuracies, table_files
from orchestration.worker.loaders import Loaders

MAX_ERRORS = 48
MAX_SAMPLES = 32
PLOTTED_METRICS = (
    "train/loss", "val/loss", "val_ema/loss", "val/top1", "val_ema/top1", "val/top5",
    "val_ema/top5", "train/lr", "train/grad_norm", "train/compute_fraction",
    "train/all_reduce_fraction", "train/data_wait_fraction", "train/images_per_second",
    "train/epoch",
)  # fmt: skip


def evaluation_files(
    store: Store, manifest: Manifest, predictions: Predictions, assessment: Evaluation
) -> dict[str, bytes]:
    """Tables, plots and pages of an evaluated split, by file name. Raises StoreError."""
    classes = manifest.classes
    tables = table_files(assessment, predictions, classes)
    return {name: text.encode() for name, text in tables.items()} | {
        "confusion.png": plots.confusion_matrix(assessment.confusion, classes),
        "confusion.html": confusion_page(assessment.confusion, classes).encode(),
        "classes.html": class_page(class_accuracies(assessment, classes)).encode(),
        "mistakes.png": _plot_errors(store, manifest, predictions),
    }


def _plot_errors(store: Store, manifest: Manifest, predictions: Predictions) -> bytes:
    """The misclassified images with the highest probability of the predicted class."""
    wrong = (predictions.best[:, 0] != predictions.targets).nonzero()[:, 0]
    order = predictions.best_p[wrong, 0].argsort(descending=True, stable=True)
    images, captions = [], []
    for row in wrong[order][:MAX_ERRORS].tolist():
        shard, number = predictions.samples[row].tolist()
        try:
            image, _ = read_sample(store, manifest, shard, number)
        except DataError:  # damaged since it was scored
            continue
        truth = manifest.classes[int(predictions.targets[row])]
        predicted = manifest.classes[int(predictions.best[row, 0])]
        percent = 100 * float(predictions.best_p[row, 0])
        images.append(center_square(image))
        captions.append(f"{truth[:16]}\npredicted {predicted[:16]}, {percent:.0f} %")
    return plots.image_grid(images, captions, "Most confident errors")


def plot_curves(points: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, bytes]:
    """The curves of a run, by file name. points: (step, value) by key, of PLOTTED_METRICS."""
    step, epoch = (points.get("train/epoch") or [(1, 1.0)])[-1]
    epochs_per_step = epoch / max(step, 1)
    by_epoch = {
        key: [(step * epochs_per_step, value) for step, value in values]
        for key, values in points.items()
    }
    return {
        "learning-curves.png": plots.learning_curves(by_epoch),
        "rate-and-norm.png": plots.plot_learning_rate(by_epoch),
        "time.png": plots.plot_step_time(by_epoch),
    }


def plot_samples(job: Job, plan: Plan, store: Store, train: Manifest) -> bytes:
    """The first training samples as the network sees them: augmented and mixed.

    Raises DataError, StoreError.
    """
    loaders = Loaders(
        job=job, plan=replace(plan, loader_workers=0), store=store, rank=0, world_size=1,
        decoder=None,
    )  # fmt: skip
    mix_config = MixConfig(mixup=job.loss.mixup, cutmix=job.loss.cutmix)
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    with loaders.train_loader(train, step=0) as loader:
        for batch in next(iter(loader)):
            if len(images) >= MAX_SAMPLES:
                break
            batch = to_device(batch, torch.device("cpu"))
            num_groups = count_groups(len(batch.targets), job.model.bn_group_size)
            keys = group_keys(job.seed, 0, batch.index, num_groups, plan.num_micro_batches)
            augmented, targets = (
                sort_by_group(rows, num_groups) for rows in (batch.images, batch.targets)
            )
            mixed, _ = mix_groups(normalize(augmented), mix_config, keys)
            pixels = ((mixed.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)  # (m, 3, S, S)
            images += [np.ascontiguousarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
            captions += [train.classes[int(target)][:16] for target in targets]
    title = "First training samples, as the network sees them"
    return plots.image_grid(images[:MAX_SAMPLES], captions[:MAX_SAMPLES], title)
