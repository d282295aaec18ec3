"""Pictures and pages: they open, show what they are given, and break at nothing."""

import io
import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from orchestration.pages import class_page, confusion_page, timeline_page
from orchestration.pictures import (
    confusion_picture,
    image_grid,
    learning_curves,
    rate_and_norm,
    time_split,
)
from orchestration.timeline import Attempt


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


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


@pytest.mark.parametrize("draw", [learning_curves, rate_and_norm, time_split])
def test_curves_show_the_points_and_stand_any(draw: Callable[..., bytes]) -> None:
    full = draw(POINTS, epoch)
    assert opened(full).size[0] > 800
    empty = draw({}, epoch)
    holes = draw({key: [(1, math.nan), (2, math.inf)] for key in POINTS}, epoch)
    assert opened(empty).size == opened(full).size
    assert np.array_equal(np.asarray(opened(empty)), np.asarray(opened(holes)))
    assert not np.array_equal(np.asarray(opened(empty)), np.asarray(opened(full)))


def test_a_confusion_of_few_and_of_many_classes() -> None:
    few = opened(confusion_picture(torch.tensor([[5, 1], [0, 4]]), ["cat", "dog"]))
    many = torch.randint(0, 3, (300, 300))
    large = opened(confusion_picture(many, [f"class {i}" for i in range(300)]))
    assert large.size[0] > few.size[0]
    assert large.size[0] < 3000  # not a cell for each of 300


def test_a_grid_of_images_of_any_size() -> None:
    images = [np.full((h, w, 3), 200, dtype=np.uint8) for h, w in ((8, 8), (300, 200), (75, 75))]
    opened(image_grid(images, ["one", "two", "three"], "Some"))
    opened(image_grid([], [], "None"))


HOSTILE = '</script><b onclick="x()">&'


def data_of(page: str) -> dict[str, list[object]]:
    found = re.search(r"const data=(.*?);\s", page, re.DOTALL)
    assert found is not None
    data: dict[str, list[object]] = json.loads(found[1])
    return data


def test_a_confusion_page_has_the_worst_pair_first_and_no_name_breaks_it() -> None:
    page = confusion_page(torch.tensor([[5, 1, 0], [3, 4, 0], [0, 0, 2]]), ["cat", HOSTILE, "cow"])
    assert page.count("</script>") == 1
    assert "<b onclick" not in page
    data = data_of(page)
    assert data["classes"] == ["cat", HOSTILE, "cow"]
    assert data["cells"] == [[1, 0, 3], [0, 1, 1]]
    assert "4 of 15 images" in page


def test_a_thousand_classes_stay_small() -> None:
    torch.manual_seed(0)
    confusion = torch.diag(torch.full((1000,), 38))
    for truth in range(1000):
        confusion[truth, torch.randint(0, 1000, (12,))] += 1
    assert len(confusion_page(confusion, [f"class {i}" for i in range(1000)])) < 2_000_000


def test_a_class_page_and_a_timeline() -> None:
    page = class_page([(HOSTILE, 3, 33.3)])
    assert page.count("</script>") == 1
    assert data_of(page)["rows"] == [[HOSTILE, 3, 33.3]]
    life = [
        Attempt(began=0, ended=60, ranks=4, from_step=0, to_step=50, trained_s=50,
                ended_by="<rank> 1 died"),
        Attempt(began=80, ended=100, ranks=2, from_step=40, to_step=70, trained_s=15, ended_by=""),
    ]  # fmt: skip
    page = timeline_page(life, "a-run")
    assert "2 attempts in 100 s; 55 % of it" in page
    assert "&lt;rank&gt; 1 died" in page
    assert page.count("title=") == 2
    assert "It has not begun" in timeline_page([], "a-run")
