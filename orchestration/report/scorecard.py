"""Metrics and tables of an evaluation, and the blacklist. Pure."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

import torch

from inception.predictions import Evaluation, Predictions
from orchestration.errors import JobError
from orchestration.run.metrics import AVERAGE, RAW

PREFIXES = {RAW: "eval", AVERAGE: "eval_ema"}


def table_files(
    assessment: Evaluation, predictions: Predictions, classes: Sequence[str]
) -> dict[str, str]:
    """CSV tables by file name: the confusion matrix has a row for each true class; the predictions,
    one for each image, with the probabilities of the most likely class and of the true one."""
    bins = [(count, f"{p:.6f}", f"{share:.6f}") for count, p, share in assessment.calibration]
    accuracies = class_accuracies(assessment, classes)
    pairs = confused_pairs(assessment, classes)
    confusion = zip(classes, assessment.confusion.tolist(), strict=True)
    images = [
        [key, classes[truth], classes[best[0]], f"{p[0]:.6f}", f"{target_p:.6f}"]
        for key, truth, best, p, target_p in zip(
            predictions.keys,
            predictions.targets.tolist(),
            predictions.best.tolist(),
            predictions.best_p.tolist(),
            predictions.target_p.tolist(),
            strict=True,
        )
    ]
    columns = ["image", "truth", "predicted", "probability", "probability_of_truth"]
    return {
        "confusion.csv": _to_csv(["truth", *classes], [[name, *row] for name, row in confusion]),
        "per-class.csv": _to_csv(["class", "images", "accuracy"], accuracies),
        "pairs.csv": _to_csv(["truth", "predicted", "images"], pairs),
        "calibration.csv": _to_csv(["images", "confidence", "accuracy"], bins),
        "predictions.csv": _to_csv(columns, images),
    }


def mlflow_metrics(assessments: Mapping[str, Evaluation], crops: int) -> dict[str, float]:
    """Metrics by MLflow key: `eval/top1`, `eval_ema/top1` of averaged weights, with several crops
    `eval_144_crops/top1`."""
    suffix = f"_{crops}_crops" if crops > 1 else ""
    return {
        f"{PREFIXES[kind]}{suffix}/{name}": float(value)
        for kind, assessment in assessments.items()
        for name, value in percent_metrics(assessment).items()
    }


def percent_metrics(assessment: Evaluation) -> dict[str, float]:
    """Metrics by name; accuracies and calibration error in percent."""
    return {
        "images": assessment.count,
        "top1": 100 * assessment.top1,
        "top5": 100 * assessment.top5,
        "loss": assessment.loss,
        "calibration_error": 100 * assessment.calibration_error,
    }


def class_accuracies(
    assessment: Evaluation, classes: Sequence[str]
) -> list[tuple[str, int, float]]:
    """(class, images, percent correct) of each class that has images, lowest accuracy first."""
    totals = assessment.confusion.sum(1).tolist()
    correct = assessment.confusion.diagonal().tolist()
    rows = [
        (name, total, 100 * hits / total)
        for name, total, hits in zip(classes, totals, correct, strict=True)
        if total
    ]
    return sorted(rows, key=lambda row: (row[2], row[0]))


def confused_pairs(assessment: Evaluation, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """(true class, predicted class, images) of all errors, most frequent first."""
    wrong = assessment.confusion.clone().fill_diagonal_(0)
    pairs = [
        (classes[truth], classes[predicted], int(wrong[truth, predicted]))
        for truth, predicted in wrong.nonzero().tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def _to_csv(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def drop_blacklisted(predictions: Predictions, blacklist: Sequence[str]) -> tuple[Predictions, int]:
    """-> the predictions without those of blacklisted images, and how many these are.

    An entry is an image's name in its shard, with or without folders, or the number that this name
    ends in, as in ImageNet's list of 1,762 validation images (the paper evaluates on the other
    48,238). Raises JobError for an entry that matches no image.
    """
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(predictions.keys):
        name = key.rpartition("/")[2]
        digits = re.search(r"\d+$", name)
        number = {str(int(digits[0]))} if digits else set()
        for alias in {key, name} | number:
            rows_of.setdefault(alias, []).append(row)
    dropped: set[int] = set()
    for entry in blacklist:
        alias = str(int(entry)) if entry.isdigit() and entry not in rows_of else entry
        if alias not in rows_of:
            raise JobError(
                f"--blacklist: got {entry!r}, which is no image of the split; a line is an image's "
                f"name, such as {predictions.keys[0]}, or the number that it ends in. Correct the "
                "list, or omit it."
            )
        dropped.update(rows_of[alias])
    remaining = [row for row in range(len(predictions)) if row not in dropped]
    return predictions.take(torch.tensor(remaining, dtype=torch.int64)), len(dropped)
