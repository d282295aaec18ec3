"""A run in pictures: data -> PNG. Pure; drawn without a window."""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Points = Sequence[tuple[int, float]]  # (step, value)
History = Mapping[str, Points]

BLUE, RED, GREEN, SAND, INK, FAINT = (
    "#2563a8", "#c2452d", "#3f8f5b", "#c9a227", "#222222", "#b8bec6",
)  # fmt: skip
DPI = 110
SHOWN_CLASSES = 30
TILE = 112  # pixels of one image of a grid
EMPTY = "nothing to show yet"


def learning_curves(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """Loss beside top-1 by epoch, training's smoothed over its raw line."""
    figure, (left, right) = _panels("How it learnt", 2)
    raw = _finite(points, "train/loss")
    if raw:
        _line(left, raw, epoch_of, FAINT, "", width=0.8)
        _line(left, _smooth(raw), epoch_of, INK, "training")
    _line(left, _finite(points, "val/loss"), epoch_of, BLUE, "held out")
    _line(left, _finite(points, "val_ema/loss"), epoch_of, RED, "averaged")
    _fit(left)
    _line(right, _finite(points, "val/top1"), epoch_of, BLUE, "top-1")
    _line(right, _finite(points, "val_ema/top1"), epoch_of, RED, "top-1, averaged")
    top5 = _finite(points, "val_ema/top5") or _finite(points, "val/top5")
    _line(right, top5, epoch_of, GREEN, "top-5")
    return _png(figure, [(left, "loss"), (right, "held out, % right")])


def rate_and_norm(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """The learning rate beside the gradient's norm before clipping."""
    figure, (left, right) = _panels("How hard it was pushed", 2)
    _line(left, _finite(points, "train/lr"), epoch_of, BLUE, "")
    norms = [(step, value) for step, value in _finite(points, "train/grad_norm") if value > 0]
    if norms:
        _line(right, norms, epoch_of, FAINT, "", width=0.8)
        _line(right, _smooth(norms), epoch_of, INK, "")
        _fit(right)
    return _png(figure, [(left, "learning rate"), (right, "gradient norm")])


def time_split(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """Where a step's time goes, beside the speed."""
    figure, (left, right) = _panels("Where its time went", 2)
    names = ("compute", "all_reduce", "data_wait")
    parts = [dict(_finite(points, f"train/{name}_fraction")) for name in names]
    steps = sorted(set.intersection(*map(set, parts))) if all(parts) else []
    if steps:
        rows = [[100 * part[step] for step in steps] for part in parts]
        rest = [max(0.0, 100 - sum(column)) for column in zip(*rows, strict=True)]
        x = [epoch_of(step) for step in steps]
        words = ["computing", "all-reduce", "waiting for data", "the rest"]
        colours = [BLUE, SAND, RED, FAINT]
        left.stackplot(x, *rows, rest, colors=colours, labels=words, alpha=0.9)
        left.set_ylim(0, 100)
        left.legend(loc="lower left", fontsize=8, framealpha=0.9)
    _line(right, _finite(points, "train/images_per_second"), epoch_of, BLUE, "")
    right.set_ylim(bottom=0)
    return _png(figure, [(left, "% of a step"), (right, "images/s")])


def confusion_picture(confusion: Tensor, classes: Sequence[str]) -> bytes:
    """confusion: int64 (C, C), [truth, predicted]. Of more than 30 classes, those 30 that take part
    in most mistakes."""
    wrong = confusion.clone().fill_diagonal_(0)
    shown = list(range(len(classes)))
    title = "What was taken for what"
    if len(classes) > SHOWN_CLASSES:
        most = (wrong.sum(0) + wrong.sum(1)).topk(SHOWN_CLASSES).indices.tolist()
        shown = sorted(most)
        title += f": the {SHOWN_CLASSES} of {len(classes):,} classes with most mistakes"
    cells = confusion[shown][:, shown].double()
    share = (cells / confusion.sum(1)[shown].clamp_min(1)[:, None]).numpy()
    size = max(5.0, 0.34 * len(shown) + 2.5)
    figure = Figure(figsize=(size, size), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_short(classes[number]) for number in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    for row in range(len(shown)):
        for column in range(len(shown)):
            if count := int(cells[row, column]):
                dark = share[row, column] > 0.5
                axes.text(
                    column, row, f"{count}", ha="center", va="center", fontsize=7,
                    color="white" if dark else (RED if row != column else INK),
                )  # fmt: skip
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(title, fontsize=11, loc="left")
    return _save(figure)


def image_grid(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str, columns: int = 8
) -> bytes:
    """images: uint8 (H, W, 3) of any sizes, shown in squares; small ones without blur."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(
        figsize=(1.35 * columns + 0.3, 1.7 * max(rows, 1) + 0.5), dpi=DPI, layout="constrained"
    )
    figure.suptitle(title if images else f"{title}: {EMPTY}", fontsize=12, x=0.01, ha="left")
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(_tile(image))
        axes.set_title(caption, fontsize=7, pad=2)
        axes.axis("off")
    return _save(figure)


def _tile(image: NDArray[np.uint8]) -> Image.Image:
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(image).resize(size, way)


def _panels(title: str, count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2 * count, 3.9), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure, figure.subplots(1, count)


def _finite(points: History, key: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points.get(key, ()) if math.isfinite(value)]


def _line(
    axes: Axes,
    points: Points,
    epoch_of: Callable[[int], float],
    colour: str,
    label: str,
    width: float = 1.8,
) -> None:
    """A line with its name at its end."""
    if not points:
        return
    x, y = [epoch_of(step) for step, _ in points], [value for _, value in points]
    marker = "o" if len(points) < 30 else ""
    axes.plot(x, y, color=colour, linewidth=width, marker=marker, markersize=3, label=label)


def _fit(axes: Axes) -> None:
    """A logarithmic axis where values above 0 span more than thirty times."""
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")


def _smooth(points: Points) -> list[tuple[int, float]]:
    """A running mean over a fiftieth of the points."""
    width = max(1, len(points) // 50)
    values = np.array([value for _, value in points])
    sums = np.cumsum(np.concatenate([[0.0], values]))
    begins = np.maximum(np.arange(len(values)) + 1 - width, 0)
    means = (sums[1:] - sums[begins]) / (np.arange(len(values)) + 1 - begins)
    return [(step, float(mean)) for (step, _), mean in zip(points, means, strict=True)]


def _png(figure: Figure, panels: Sequence[tuple[Axes, str]]) -> bytes:
    for axes, what in panels:
        axes.set_title(what, fontsize=10, loc="left", color=INK)
        axes.grid(True, color="#e6e8eb", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("epoch", fontsize=9)
        axes.tick_params(labelsize=8)
        if not axes.has_data():
            axes.text(0.5, 0.5, EMPTY, ha="center", color="#777777", transform=axes.transAxes)
        elif [one for one in axes.lines if not str(one.get_label()).startswith("_")]:
            axes.legend(fontsize=8, frameon=False)
    return _save(figure)


def _save(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
