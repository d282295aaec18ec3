"""What an evaluation is told as, and which images do not count."""

import csv
import io

import pytest
import torch

from inception.predictions import Predictions, assess, predict
from orchestration.errors import JobError
from orchestration.report.scorecard import (
    class_rows,
    confused_pairs,
    confusion_csv,
    metrics_of,
    predictions_csv,
    without_blacklisted,
)

CLASSES = ("cat", "dog, small", "ox")
KEYS = ("val/ILSVRC2012_val_00000007", "val/ILSVRC2012_val_00000070", "val/named", "val/x7b")


def predictions() -> Predictions:
    p = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.6, 0.3]])
    samples = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    return predict(p, torch.tensor([0, 1, 0, 0]), torch.ones(4), samples, KEYS)


def test_tables_by_hand() -> None:
    one = assess(predictions(), 3)
    assert class_rows(one, CLASSES) == [("cat", 3, pytest.approx(100 / 3)), ("dog, small", 1, 100)]
    assert confused_pairs(one, CLASSES) == [("cat", "dog, small", 2)]
    rows = list(csv.reader(io.StringIO(confusion_csv(one, CLASSES))))
    assert rows[0] == ["truth", *CLASSES]
    assert rows[1] == ["cat", "1", "2", "0"]
    said = list(csv.DictReader(io.StringIO(predictions_csv(predictions(), CLASSES))))
    assert [row["image"] for row in said] == list(KEYS)
    assert said[2] == {
        "image": "val/named", "truth": "cat", "predicted": "dog, small",
        "probability": "0.600000", "probability_of_truth": "0.300000",
    }  # fmt: skip
    assert metrics_of({"raw": one}, 1)["eval/top1"] == 50.0
    assert metrics_of({"average": one}, 144)["eval_ema_144_crops/images"] == 4.0


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        ([], 4),
        (["7"], 3),  # the number that a name ends in
        (["00000007", "70"], 2),
        (["named"], 3),
        (["val/named", "named"], 3),  # twice is once
        (["x7b"], 3),
    ],
)
def test_blacklisted_images_do_not_count(entries: list[str], left: int) -> None:
    kept, dropped = without_blacklisted(predictions(), entries)
    assert len(kept) == left
    assert dropped == 4 - left


@pytest.mark.parametrize("entry", ["8", "name", "val"])
def test_an_entry_that_names_no_image_is_told(entry: str) -> None:
    with pytest.raises(JobError, match=rf"--blacklist: got '{entry}', which is no image"):
        without_blacklisted(predictions(), [entry])
