"""Plots: they open, show their data, have a title that says so, and accept any data."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from orchestration.report.plots import (
    NO_DATA,
    TILE,
    confusion_matrix,
    image_grid,
    learning_curves,
    plot_learning_rate,
    plot_step_time,
)

DOLLARS = r"$x^$ \frac"  # matplotlib would parse this as a broken formula


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(opened(content).convert("RGB"))


def title(content: bytes) -> str:
    return str(opened(content).info["Title"])


POINTS: dict[str, list[tuple[float, float]]] = {
    "train/loss": [(step / 10, 3.0 / step) for step in range(1, 200)],
    "val/top1": [(1, 50.0), (2, 90.0)],
    "train/lr": [(0.1, 0.1)],
    "train/grad_norm": [(step / 10, 10.0**-step) for step in range(1, 9)],
    **{f"train/{part}_fraction": [(0.1, 0.3), (0.2, 0.4)] for part in ("compute", "all_reduce")},
    "train/data_wait_fraction": [(0.1, 0.1), (0.2, 0.0)],
    "train/images_per_second": [(0.1, 100.0), (0.2, 90.0)],
}
CURVES = pytest.mark.parametrize("draw", [learning_curves, plot_learning_rate, plot_step_time])


@CURVES
def test_curves_show_the_points_and_accept_any(draw: Callable[..., bytes]) -> None:
    full, empty = draw(POINTS), draw({})
    holes = draw({key: [(1.0, math.nan), (2.0, math.inf), (3.0, -1e308)] for key in POINTS})
    assert opened(full).size[0] > 800
    assert opened(empty).size == opened(full).size
    assert empty == holes
    assert NO_DATA in title(empty)
    assert NO_DATA not in title(full)
    assert not np.array_equal(pixels(empty), pixels(full))
    assert draw(POINTS) == full


@CURVES
@pytest.mark.parametrize("key", POINTS)
def test_any_key_may_be_missing_and_one_point_is_enough(
    draw: Callable[..., bytes], key: str
) -> None:
    opened(draw({name: points for name, points in POINTS.items() if name != key}))
    opened(draw({key: POINTS[key][:1]}))
    opened(draw({key: [(0, 0.0)]}))


def test_titles_say_what_is_seen() -> None:
    assert "top-1 90.00 % at epoch 2" in title(learning_curves(POINTS))
    averaged = POINTS | {"val_ema/top1": [(2, 91.0)]}
    assert "top-1 91.00 % with averaged weights" in title(learning_curves(averaged))
    assert "up to 0.1" in title(plot_learning_rate(POINTS))
    split = title(plot_step_time(POINTS))
    assert "35 % compute, 35 % all-reduce, 5 % data wait, 25 % other" in split
    alone = {key: points for key, points in POINTS.items() if "reduce" not in key}
    assert "35 % compute, 5 % data wait, 60 % other" in title(plot_step_time(alone))


def test_a_single_point_of_time_fills_its_panel() -> None:
    image = pixels(plot_step_time({"train/compute_fraction": [(0.5, 0.9)]}))
    blue = (image == (0x25, 0x63, 0xA8)).all(2)
    assert blue[:, : image.shape[1] // 2].mean() > 0.3


def test_a_confusion_of_few_and_of_many_classes() -> None:
    few = confusion_matrix(torch.tensor([[5, 1], [0, 4]]), ["cat", DOLLARS])
    assert "accuracy 90.0 %" in title(few)
    assert few != confusion_matrix(torch.tensor([[5, 0], [1, 4]]), ["cat", DOLLARS])
    many = torch.diag(torch.full((300,), 9))
    many[7, 200] = 5
    large = confusion_matrix(many, [f"class {i}" for i in range(300)])
    assert opened(few).size[0] < opened(large).size[0] < 3000  # it does not have 300 x 300 cells
    assert "the 30 of 300 classes" in title(large)


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_a_confusion_of_nothing(classes: int) -> None:
    plot = confusion_matrix(torch.zeros((classes, classes), dtype=torch.int64), ["a"] * classes)
    assert NO_DATA in title(plot)


def test_a_grid_of_images_of_any_size() -> None:
    images = [np.full((h, w, 3), 200, dtype=np.uint8) for h, w in ((8, 8), (300, 200), (75, 75))]
    sheet = image_grid(images, ["one", DOLLARS, "three\nlines, the last of which is long"], "Some")
    assert title(sheet) == "Some"
    assert NO_DATA in title(image_grid([], [], "None"))
    many = opened(image_grid(images * 6, [""] * 18, "Some")).size  # three rows of up to eight
    assert many[1] > 3 * TILE
    assert 8 * TILE < many[0] < 9 * TILE


def test_a_small_image_is_enlarged_without_blur() -> None:
    checks = np.indices((8, 8)).sum(0) % 2 * np.uint8(255)
    image = np.stack([checks, checks * 0, 255 - checks], axis=2).astype(np.uint8)  # red and blue
    sheet = pixels(image_grid([image], [""], "Chequered")).astype(np.int64)
    red, blue = ((sheet == colour).all(2) for colour in ((255, 0, 0), (0, 0, 255)))
    side = TILE // 8
    assert red.sum() == blue.sum() == 32 * side * side
