"""Metrics and tables of an evaluation, and the blacklist."""

import csv
import io

import pytest
import torch

from inception.predictions import Predictions, evaluate_predictions, make_predictions
from orchestration.errors import JobError
from orchestration.report.scorecard import (
    class_accuracies,
    confused_pairs,
    drop_blacklisted,
    mlflow_metrics,
    table_files,
)

CLASSES = ("cat", "dog, small", "ox")
KEYS = ("val/ILSVRC2012_val_00000007", "val/ILSVRC2012_val_00000070", "val/named", "val/x7b")


def predictions() -> Predictions:
    p = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.6, 0.3]])
    samples = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    return make_predictions(p, torch.tensor([0, 1, 0, 0]), torch.ones(4), samples, KEYS)


def test_tables_by_hand() -> None:
    assessment = evaluate_predictions(predictions(), 3)
    assert class_accuracies(assessment, CLASSES) == [
        ("cat", 3, pytest.approx(100 / 3)),
        ("dog, small", 1, 100),
    ]
    assert confused_pairs(assessment, CLASSES) == [("cat", "dog, small", 2)]
    tables = table_files(assessment, predictions(), CLASSES)
    rows = list(csv.reader(io.StringIO(tables["confusion.csv"])))
    assert rows[0] == ["truth", *CLASSES]
    assert rows[1] == ["cat", "1", "2", "0"]
    records = list(csv.DictReader(io.StringIO(tables["predictions.csv"])))
    assert [record["image"] for record in records] == list(KEYS)
    assert records[2] == {
        "image": "val/named", "truth": "cat", "predicted": "dog, small",
        "probability": "0.600000", "probability_of_truth": "0.300000",
    }  # fmt: skip
    assert mlflow_metrics({"raw": assessment}, 1)["eval/top1"] == 50.0
    assert mlflow_metrics({"average": assessment}, 144)["eval_ema_144_crops/images"] == 4.0


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([], 4),
        (["7"], 3),  # the number that a name ends in
        (["00000007", "70"], 2),
        (["named"], 3),
        (["val/named", "named"], 3),  # one image, named twice
        (["x7b"], 3),
    ],
)
def test_blacklisted_images_do_not_count(entries: list[str], left: int) -> None:
    remaining, dropped = drop_blacklisted(predictions(), entries)
    assert len(remaining) == left
    assert dropped == 4 - left


@pytest.mark.parametrize("entry", ["8", "name", "val"])
def test_an_entry_that_names_no_image_is_told(entry: str) -> None:
    with pytest.raises(JobError, match=rf"--blacklist: got '{entry}', which is no image"):
        drop_blacklisted(predictions(), [entry])
