"""Pictures: they open, show what they are given, say so, and break at nothing."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestration.report.plots import (
    EMPTY,
    TILE,
    confusion_matrix,
    image_grid,
    learning_curves,
    rate_and_norm,
    time_split,
)

DOLLARS = r"$x^$ \frac"  # what a plotting library would take for a broken formula


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(opened(content).convert("RGB"))


def title(content: bytes) -> str:
    return str(opened(content).info["Title"])


def epoch(step: int) -> float:
    return step / 10


POINTS = {
    "train/loss": [(step, 3.0 / step) for step in range(1, 200)],
    "val/top1": [(10, 50.0), (20, 90.0)],
    "train/lr": [(1, 0.1)],
    "train/grad_norm": [(step, 10.0**-step) for step in range(1, 9)],
    **{f"train/{part}_fraction": [(1, 0.3), (2, 0.4)] for part in ("compute", "all_reduce")},
    "train/data_wait_fraction": [(1, 0.1), (2, 0.0)],
    "train/images_per_second": [(1, 100.0), (2, 90.0)],
}
CURVES = pytest.mark.parametrize("draw", [learning_curves, rate_and_norm, time_split])


@CURVES
def test_curves_show_the_points_and_stand_any(draw: Callable[..., bytes]) -> None:
    full, empty = draw(POINTS, epoch), draw({}, epoch)
    holes = draw({key: [(1, math.nan), (2, math.inf), (3, -1e308)] for key in POINTS}, epoch)
    assert opened(full).size[0] > 800
    assert opened(empty).size == opened(full).size
    assert empty == holes
    assert EMPTY in title(empty)
    assert EMPTY not in title(full)
    assert not np.array_equal(pixels(empty), pixels(full))
    assert draw(POINTS, epoch) == full


@CURVES
@pytest.mark.parametrize("key", POINTS)
def test_any_key_may_be_missing_and_one_point_is_enough(
    draw: Callable[..., bytes], key: str
) -> None:
    opened(draw({name: some for name, some in POINTS.items() if name != key}, epoch))
    opened(draw({key: POINTS[key][:1]}, epoch))
    opened(draw({key: [(0, 0.0)]}, epoch))


def test_titles_say_what_is_seen() -> None:
    assert "90.00 % right at epoch 2" in title(learning_curves(POINTS, epoch))
    averaged = POINTS | {"val_ema/top1": [(20, 91.0)]}
    assert "91.00 % right with averaged" in title(learning_curves(averaged, epoch))
    assert "up to 0.1" in title(rate_and_norm(POINTS, epoch))
    split = title(time_split(POINTS, epoch))
    assert "35 % computing, 35 % all-reduce, 5 % waiting for data, 25 % the rest" in split
    alone = {key: some for key, some in POINTS.items() if "reduce" not in key}
    assert "35 % computing, 5 % waiting for data, 60 % the rest" in title(time_split(alone, epoch))


def test_a_single_point_of_time_fills_its_panel() -> None:
    one = pixels(time_split({"train/compute_fraction": [(5, 0.9)]}, epoch))
    blue = (one == (0x25, 0x63, 0xA8)).all(2)
    assert blue[:, : one.shape[1] // 2].mean() > 0.3


def test_a_confusion_of_few_and_of_many_classes() -> None:
    few = confusion_matrix(torch.tensor([[5, 1], [0, 4]]), ["cat", DOLLARS])
    assert "90.0 % right" in title(few)
    assert few != confusion_matrix(torch.tensor([[5, 0], [1, 4]]), ["cat", DOLLARS])
    many = torch.diag(torch.full((300,), 9))
    many[7, 200] = 5
    large = confusion_matrix(many, [f"class {i}" for i in range(300)])
    assert opened(few).size[0] < opened(large).size[0] < 3000  # not a cell for each of 300
    assert "the 30 of 300 classes" in title(large)


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_a_confusion_of_nothing(classes: int) -> None:
    nothing = confusion_matrix(torch.zeros((classes, classes), dtype=torch.int64), ["a"] * classes)
    assert EMPTY in title(nothing)


def test_a_grid_of_images_of_any_size() -> None:
    images = [np.full((h, w, 3), 200, dtype=np.uint8) for h, w in ((8, 8), (300, 200), (75, 75))]
    sheet = image_grid(images, ["one", DOLLARS, "three\nlines, the last of which is long"], "Some")
    assert title(sheet) == "Some"
    assert EMPTY in title(image_grid([], [], "None"))
    tall = opened(image_grid(images, ["", "", ""], "Some", columns=1)).size
    assert tall[1] > 3 * TILE


def test_a_small_image_is_enlarged_without_blur() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    image = np.stack([board, board * 0, 255 - board], axis=2).astype(np.uint8)  # red beside blue
    sheet = pixels(image_grid([image], [""], "Chequered")).astype(np.int64)
    red, blue = ((sheet == colour).all(2) for colour in ((255, 0, 0), (0, 0, 255)))
    side = TILE // 8
    assert red.sum() == blue.sum() == 32 * side * side
