"""Plots of a run and an evaluation, as PNG. Pure; drawn without a display."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

Points = Sequence[tuple[float, float]]  # (epoch, value)
History = Mapping[str, Points]
Label = tuple[float, str, str]  # at a panel's right edge: height in data units, text, colour

BLUE, RED, GREEN, SAND = "#2563a8", "#c2452d", "#3f8f5b", "#b98a12"
INK, GREY, FAINT, PALE = "#222222", "#6b7280", "#c3c9d0", "#f4f5f7"
DPI = 110
MAX_CLASSES = 30  # of a confusion matrix
MAX_COLUMNS = 8  # of a grid of images
TILE, GAP, LINE = 150, 12, 15  # pixels: an image of a grid, the gap, a caption's line
NO_DATA = "no data yet"


def learning_curves(points: History) -> bytes:
    """Loss and accuracy by epoch; the training loss is smoothed over its raw line."""
    figure, left, right = _two_panels()
    labels = _plot(left, _finite(points, "train/loss"), INK, "training {:.3g}", is_noisy=True)
    labels += _plot(left, _finite(points, "val/loss"), GREEN, "validation {:.3g}")
    labels += _plot(left, _finite(points, "val_ema/loss"), BLUE, "averaged {:.3g}")
    _set_log_scale_if_wide(left)
    _finish(left, "loss", labels)
    raw, average = _finite(points, "val/top1"), _finite(points, "val_ema/top1")
    top5 = _finite(points, "val_ema/top5") or _finite(points, "val/top5")
    labels = _plot(right, top5, GREY, "top-5 {:.2f}")
    labels += _plot(right, raw, GREEN, "top-1 {:.2f}")
    labels += _plot(right, average, BLUE, "top-1, averaged {:.2f}")
    if len(raw) + len(average) < 3:
        right.set_ylim(0, 100)
    _finish(right, "validation accuracy, %", labels)
    title = "Learning curves"
    if last := average or raw:
        weights = " with averaged weights" if average else ""
        title += f": top-1 {last[-1][1]:.2f} %{weights} at epoch {last[-1][0]:.3g}"
    return _save(figure, title)


def plot_learning_rate(points: History) -> bytes:
    """Learning rate, and gradient norm before clipping, by epoch."""
    figure, left, right = _two_panels()
    title, rates = "Learning rate and gradient norm", _finite(points, "train/lr")
    labels = _plot(left, rates, BLUE, "{:.3g}")
    if rates:
        left.set_ylim(bottom=0)
        title += f": learning rate up to {max(rate for _, rate in rates):.3g}"
    _finish(left, "learning rate", labels)
    norms = [(epoch, value) for epoch, value in _finite(points, "train/grad_norm") if value > 0]
    labels = _plot(right, norms, INK, "{:.3g}", is_noisy=True)
    _set_log_scale_if_wide(right)
    _finish(right, "gradient norm before clipping", labels)
    return _save(figure, title)


def plot_step_time(points: History) -> bytes:
    """The measured parts of the step time, and the throughput, by epoch."""
    figure, left, right = _two_panels()
    styles = {
        "compute": ("compute", BLUE), "all_reduce": ("all-reduce", SAND),
        "data_wait": ("data wait", RED),
    }  # fmt: skip
    parts = {name: dict(_finite(points, f"train/{name}_fraction")) for name in styles}
    parts = {name: part for name, part in parts.items() if part}
    x = sorted(set.intersection(*map(set, parts.values()))) if parts else []
    title, labels = "Step time", []
    if x:
        rows = [_smooth([100 * part[epoch] for epoch in x]) for part in parts.values()]
        rows.append(np.maximum(0.0, 100 - sum(rows)))  # (points,) each
        bands = [styles[name] for name in parts] + [("other", GREY)]
        if len(x) == 1:  # an area needs two points; the value covers the time until its epoch
            x, rows = [0.0, *x], [np.repeat(row, 2) for row in rows]
        colours = [colour for _, colour in bands[:-1]] + [FAINT]
        left.stackplot(x, *rows, colors=colours, edgecolor="white", linewidth=0.6)
        left.set_ylim(0, 100)
        means = [f"{row.mean():.0f} %" for row in rows]
        tops = np.cumsum([row[-1] for row in rows])
        labels = [
            (float(top - row[-1] / 2), f"{name} {mean}", colour)
            for top, row, mean, (name, colour) in zip(tops, rows, means, bands, strict=True)
        ]
        title += ": " + ", ".join(
            f"{mean} {name}" for mean, (name, _) in zip(means, bands, strict=True)
        )
    _finish(left, "% of step time; labels: means", labels)
    speeds = _finite(points, "train/images_per_second")
    labels = _plot(right, speeds, BLUE, "{:,.0f}", is_noisy=True)
    right.set_ylim(bottom=0)
    _finish(right, "images/s", labels)
    return _save(figure, title)


def confusion_matrix(confusion: Tensor, classes: Sequence[str]) -> bytes:
    """confusion: int64 (C, C), [truth, predicted]. Of more than 30 classes, the 30 with the most
    errors, and a last column that counts predictions of the others."""
    wrong = confusion.clone().fill_diagonal_(0)
    title = "Confusion matrix"
    if not int(confusion.sum()):
        return _save(_figure(6, 4), title)
    title += f": accuracy {100 * int(confusion.diagonal().sum()) / int(confusion.sum()):.1f} %"
    order = (wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)
    shown = sorted(order[:MAX_CLASSES].tolist())
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
    names = [_plain(short[number]) for number in shown]
    heads = list(names)
    cells, totals = confusion[shown][:, shown], confusion[shown].sum(1, keepdim=True)
    share = (cells / totals.clamp_min(1)).double().numpy()
    is_correct = np.eye(len(shown), dtype=bool)
    # Errors are rare: on a scale to 100 % they would be invisible.
    error_depth = np.sqrt(share / max(0.3, share[~is_correct].max(initial=0)))
    depth = np.where(is_correct, share, error_depth)
    if len(shown) < len(classes):
        title += f"; the {MAX_CLASSES} of {len(classes):,} classes with the most errors"
        heads.append("other")
        cells = torch.cat([cells, totals - cells.sum(1, keepdim=True)], 1)
        is_correct = np.pad(is_correct, ((0, 0), (0, 1)))
        depth = np.pad(depth, ((0, 0), (0, 1)))
    side = max(0.36 * len(heads), 3.6)  # inches
    figure = _figure(side + 2.6, side + 2.4)
    axes = figure.subplots()
    axes.imshow(_tint(depth, is_correct))
    is_narrow = max(map(len, heads)) * 0.09 > side / len(heads)
    axes.set_xticks(range(len(heads)), heads, rotation=90 if is_narrow else 0, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks(np.arange(len(heads) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, column in cells.nonzero().tolist():
        count = str(int(cells[row, column]))
        colour = "white" if depth[row, column] > 0.6 else INK
        axes.text(column, row, count, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted class", fontsize=9, color=GREY)
    axes.set_ylabel("true class", fontsize=9, color=GREY)
    legend = "blue: correct, red: errors; darker: a larger share of the true class"
    axes.set_title(legend, fontsize=9, loc="left", color=GREY)
    return _save(figure, title)


def image_grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str) -> bytes:
    """images: uint8 (H, W, 3) of any size, each fitted into a square; small ones show their pixels
    as blocks."""
    columns = max(1, min(MAX_COLUMNS, len(images)))
    texts = ["\n".join(textwrap.fill(line, 24) for line in text.split("\n")) for text in captions]
    lines = max((text.count("\n") + 1 for text in texts), default=1)
    pitch, head = TILE + 8 + lines * LINE + GAP, 48  # pixels: from row to row, above the first
    width = max(4, columns) * (TILE + GAP) + GAP
    height = head + max(1, math.ceil(len(images) / columns)) * pitch
    sheet = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        x = GAP + number % columns * (TILE + GAP)
        y = head + number // columns * pitch
        tile = _fit_tile(image)
        sheet.paste(PALE, (x, y, x + TILE, y + TILE))
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        at = x / width, 1 - (y + TILE + 5) / height
        figure.text(*at, _plain(text), va="top", fontsize=8, color=INK, linespacing=1.25)
    if images:
        figure.figimage(np.asarray(sheet))  # pixel for pixel, without resampling
    return _save(figure, title)


def _fit_tile(image: NDArray[np.uint8]) -> Image.Image:
    """At most TILE wide and high; enlarged only by whole factors, so that pixels stay square."""
    tile, factor = Image.fromarray(image), TILE // max(image.shape[:2])
    if factor:
        return ImageOps.scale(tile, factor, Image.Resampling.NEAREST)
    return ImageOps.contain(tile, (TILE, TILE), Image.Resampling.LANCZOS)


def _tint(depth: NDArray[np.float64], is_correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """RGB of cells: blue if correct, else red; pale at depth 0."""
    colour = np.where(is_correct[..., None], to_rgb(BLUE), to_rgb(RED))
    pale = np.array(to_rgb(PALE))
    tinted: NDArray[np.float64] = pale + (colour - pale) * depth[..., None]
    return tinted


def _figure(width: float, height: float) -> Figure:
    """width, height: inches. Panels are laid out below the title."""
    below = (0, 0, 1, 1 - 38 / DPI / height)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, rect=below)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def _two_panels() -> tuple[Figure, Axes, Axes]:
    figure = _figure(11.6, 4.3)
    left, right = figure.subplots(1, 2)
    return figure, left, right


def _finite(points: History, key: str) -> list[tuple[float, float]]:
    """The points that can be drawn: above 1e30 the arithmetic of an axis overflows."""
    return [(epoch, value) for epoch, value in points.get(key, ()) if abs(value) < 1e30]


def _plot(
    axes: Axes, points: Points, colour: str, label: str, *, is_noisy: bool = False
) -> list[Label]:
    """Draws a line, a noisy one smoothed over its raw self; -> its label, with {} replaced by the
    last value."""
    if not points:
        return []
    x, y = [epoch for epoch, _ in points], [value for _, value in points]
    if is_noisy:
        axes.plot(x, y, color=FAINT, linewidth=0.8)
        y = _smooth(y).tolist()
    marker = "o" if len(points) < 30 else ""
    axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, clip_on=False)
    return [(y[-1], label.format(y[-1]), colour)]


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """Moving average over a fiftieth of the points, centred so that it does not lag: (points,)."""
    i, half = np.arange(len(values)), len(values) // 100
    first, last = np.maximum(i - half, 0), np.minimum(i + half + 1, len(values))
    sums = np.cumsum(np.array([0.0, *values]))
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def _set_log_scale_if_wide(axes: Axes) -> None:
    """Logarithmic if all values are positive and the largest is over 30 times the smallest."""
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _finish(axes: Axes, title: str, labels: Sequence[Label]) -> None:
    """Draws a panel's frame, and its lines' labels at the right edge; without any, that there is no
    data."""
    axes.set_title(title, fontsize=10, loc="left", color=GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", labelsize=9, length=0, labelcolor=INK)
    if not labels:
        axes.set(xticks=[], yticks=[], facecolor=PALE)
        axes.text(0.5, 0.5, NO_DATA, ha="center", color=GREY, transform=axes.transAxes)
        return
    axes.grid(True, axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set(visible=True, color=FAINT)
    axes.set_xlabel("epoch", fontsize=9, color=GREY)
    axes.set_xlim(0, axes.dataLim.x1 if axes.dataLim.x1 > 0 else 1)
    axes.locator_params(axis="x", nbins=6)
    to_height = axes.transScale + axes.transLimits  # data -> 0..1
    heights = [min(max(0.0, float(to_height.transform((1, y))[1])), 1.0) for y, _, _ in labels]
    for (_, text, colour), height in zip(labels, _spread(heights), strict=True):
        where = axes.transAxes
        axes.text(1.015, height, text, size=9, color=colour, va="center", transform=where)


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights (0..1) moved apart, in their order, by at least a line of text between any two."""
    line, order = 0.062, sorted(range(len(heights)), key=heights.__getitem__)
    placed = sorted(heights)
    for _ in range(50):
        placed[0] = max(placed[0], line / 2)
        for i in range(len(placed) - 1):
            overlap = max(0.0, line - (placed[i + 1] - placed[i]))
            placed[i : i + 2] = [placed[i] - overlap / 2, placed[i + 1] + overlap / 2]
    return [placed[order.index(i)] for i in range(len(heights))]


def _plain(text: str) -> str:
    """Escapes dollars, which start a formula in matplotlib."""
    return text.replace("$", r"\$")


def _save(figure: Figure, title: str) -> bytes:
    if not figure.images and not any(axes.has_data() for axes in figure.axes):
        title += f": {NO_DATA}"
    width, height = figure.get_size_inches() * figure.dpi
    place = {"x": 12 / width, "y": 1 - 12 / height, "ha": "left", "va": "top"}
    figure.suptitle(_plain(title), fontsize=12, weight="bold", color=INK, **place)
    buffer = io.BytesIO()
    # The title helps screen readers; the version of the software would make equal plots differ.
    figure.savefig(buffer, format="png", metadata={"Title": title, "Software": None})
    return buffer.getvalue()
