"""What an evaluation is told as: metrics, tables, and which images do not count. Pure."""

import csv
import io
import re
from collections.abc import Mapping, Sequence

import torch

from inception.predictions import Assessment, Predictions
from orchestration.errors import JobError
from orchestration.run.metrics import AVERAGE, RAW

PREFIXES = {RAW: "eval", AVERAGE: "eval_ema"}


def files_of(one: Assessment, predictions: Predictions, classes: Sequence[str]) -> dict[str, str]:
    """An evaluation's tables by file name."""
    bins = [(count, f"{p:.6f}", f"{share:.6f}") for count, p, share in one.calibration]
    return {
        "confusion.csv": confusion_csv(one, classes),
        "per-class.csv": to_csv(["class", "images", "accuracy"], class_rows(one, classes)),
        "pairs.csv": to_csv(["truth", "predicted", "images"], confused_pairs(one, classes)),
        "calibration.csv": to_csv(["images", "confidence", "accuracy"], bins),
        "predictions.csv": predictions_csv(predictions, classes),
    }


def metrics_of(assessments: Mapping[str, Assessment], crops: int) -> dict[str, float]:
    """By MLflow key: `eval/top1`, of the average `eval_ema/top1`; of more crops
    `eval_144_crops/top1`. Shares in percent."""
    suffix = f"_{crops}_crops" if crops > 1 else ""
    return {
        f"{PREFIXES[kind]}{suffix}/{name}": float(value)
        for kind, one in assessments.items()
        for name, value in figures(one).items()
    }


def figures(one: Assessment) -> dict[str, float]:
    """What an assessment says in numbers, shares in percent."""
    return {
        "images": one.count,
        "top1": 100 * one.top1,
        "top5": 100 * one.top5,
        "loss": one.loss,
        "calibration_error": 100 * one.calibration_error,
    }


def class_rows(assessment: Assessment, classes: Sequence[str]) -> list[tuple[str, int, float]]:
    """(class, its images, percent of them that are right), the worst first; classes without images
    are left out."""
    totals = assessment.confusion.sum(1).tolist()
    right = assessment.confusion.diagonal().tolist()
    rows = [
        (name, total, 100 * hits / total)
        for name, total, hits in zip(classes, totals, right, strict=True)
        if total
    ]
    return sorted(rows, key=lambda row: (row[2], row[0]))


def confused_pairs(assessment: Assessment, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """(truth, what was said, images) of every mistake that was made, the most frequent first."""
    wrong = assessment.confusion.clone().fill_diagonal_(0)
    pairs = [
        (classes[truth], classes[said], int(wrong[truth, said]))
        for truth, said in wrong.nonzero().tolist()
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))


def confusion_csv(assessment: Assessment, classes: Sequence[str]) -> str:
    """The whole matrix: a row for each truth, a column for each word."""
    rows = zip(classes, assessment.confusion.tolist(), strict=True)
    return to_csv(["truth", *classes], [[name, *counts] for name, counts in rows])


def predictions_csv(predictions: Predictions, classes: Sequence[str]) -> str:
    """Each image: its name, the truth, what was said and how surely."""
    return to_csv(
        ["image", "truth", "predicted", "probability", "probability_of_truth"],
        [
            [key, classes[truth], classes[best[0]], f"{p[0]:.6f}", f"{of_truth:.6f}"]
            for key, truth, best, p, of_truth in zip(
                predictions.keys,
                predictions.targets.tolist(),
                predictions.best.tolist(),
                predictions.best_p.tolist(),
                predictions.target_p.tolist(),
                strict=True,
            )
        ],
    )


def to_csv(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def without_blacklisted(
    predictions: Predictions, blacklist: Sequence[str]
) -> tuple[Predictions, int]:
    """The predictions less those of blacklisted images, and how many these are.

    An entry is an image's name in its shard, without folders or with them, or its number, the
    digits that its name ends in: ImageNet's list of 1,762 validation images has numbers (the
    paper's 48,238 images are the others). Raises JobError for an entry that names no image.
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
                f"name, such as {predictions.keys[0]}, or the number that it ends in. Mend the "
                "list, or leave it out."
            )
        dropped.update(rows_of[alias])
    kept = [row for row in range(len(predictions)) if row not in dropped]
    return predictions.take(torch.tensor(kept, dtype=torch.int64)), len(dropped)
