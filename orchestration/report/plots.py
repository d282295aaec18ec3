"""A run in pictures: data -> PNG. Pure; drawn without a window."""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Points = Sequence[tuple[int, float]]  # (step, value)
History = Mapping[str, Points]
End = tuple[float, str, str]  # a name at a panel's right edge: its height as data, words, colour

BLUE, RED, GREEN, SAND = "#2563a8", "#c2452d", "#3f8f5b", "#b98a12"
INK, GREY, FAINT, PALE = "#222222", "#6b7280", "#c3c9d0", "#f4f5f7"
DPI = 110
SHOWN_CLASSES = 30
TILE, GAP, LINE = 150, 12, 15  # pixels: an image of a grid, what is between two, a caption's line
EMPTY = "nothing to show yet"


def learning_curves(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """Loss beside top-1 by epoch, training's smoothed over its raw line."""
    figure = _figure(11.6, 4.3)
    left, right = figure.subplots(1, 2)
    ends = _noisy(left, _finite(points, "train/loss"), epoch_of, INK, "training {:.3g}")
    ends += _line(left, _finite(points, "val/loss"), epoch_of, GREEN, "held out {:.3g}")
    ends += _line(left, _finite(points, "val_ema/loss"), epoch_of, BLUE, "averaged {:.3g}")
    _log_where_wide(left)
    has_data = _finish(left, "loss", ends)
    raw, average = _finite(points, "val/top1"), _finite(points, "val_ema/top1")
    top5 = _finite(points, "val_ema/top5") or _finite(points, "val/top5")
    ends = _line(right, top5, epoch_of, GREY, "top-5 {:.2f}")
    ends += _line(right, raw, epoch_of, GREEN, "top-1 {:.2f}")
    ends += _line(right, average, epoch_of, BLUE, "top-1, averaged {:.2f}")
    if len(raw) + len(average) < 3:
        right.set_ylim(0, 100)
    has_data |= _finish(right, "held out, % right", ends)
    title = "How it learnt"
    if last := average or raw:
        weights = " with averaged weights" if average else ""
        title += f": {last[-1][1]:.2f} % right{weights} at epoch {epoch_of(last[-1][0]):.3g}"
    return _save(figure, title, has_data=has_data)


def rate_and_norm(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """The learning rate beside the gradient's norm before clipping."""
    figure = _figure(11.6, 4.3)
    left, right = figure.subplots(1, 2)
    title, rates = "How hard it was pushed", _finite(points, "train/lr")
    ends = _line(left, rates, epoch_of, BLUE, "{:.3g}")
    if rates:
        left.set_ylim(bottom=0)
        title += f": learning rate up to {max(rate for _, rate in rates):.3g}"
    has_data = _finish(left, "learning rate", ends)
    norms = [(step, value) for step, value in _finite(points, "train/grad_norm") if value > 0]
    ends = _noisy(right, norms, epoch_of, INK, "{:.3g}")
    _log_where_wide(right)
    has_data |= _finish(right, "gradient norm before clipping", ends)
    return _save(figure, title, has_data=has_data)


def time_split(points: History, epoch_of: Callable[[int], float]) -> bytes:
    """Where a step's time goes, as far as it was measured, beside the speed."""
    figure = _figure(11.6, 4.3)
    left, right = figure.subplots(1, 2)
    words = {
        "compute": ("computing", BLUE), "all_reduce": ("all-reduce", SAND),
        "data_wait": ("waiting for data", RED),
    }  # fmt: skip
    parts = {name: dict(_finite(points, f"train/{name}_fraction")) for name in words}
    parts = {name: part for name, part in parts.items() if part}
    steps = sorted(set.intersection(*map(set, parts.values()))) if parts else []
    title, ends = "Where its time went", []
    if steps:
        rows = [_smooth([(step, 100 * part[step]) for step in steps]) for part in parts.values()]
        rows.append(np.maximum(0.0, 100 - sum(rows)))  # (steps,) each
        bands = [words[name] for name in parts] + [("the rest", GREY)]
        x = [epoch_of(step) for step in steps]
        if len(steps) == 1:  # an area has two sides, and what was measured is the time until then
            x, rows = [0.0, *x], [np.repeat(row, 2) for row in rows]
        colours = [colour for _, colour in bands[:-1]] + [FAINT]
        left.stackplot(x, *rows, colors=colours, edgecolor="white", linewidth=0.6)
        left.set_ylim(0, 100)
        shares = [f"{row.mean():.0f} %" for row in rows]
        tops = np.cumsum([row[-1] for row in rows])
        ends = [
            (float(top - row[-1] / 2), f"{name} {share}", colour)
            for top, row, share, (name, colour) in zip(tops, rows, shares, bands, strict=True)
        ]
        title += ": " + ", ".join(
            f"{share} {name}" for share, (name, _) in zip(shares, bands, strict=True)
        )
    has_data = _finish(left, "% of a step; means beside", ends)
    speeds = _finite(points, "train/images_per_second")
    ends = _noisy(right, speeds, epoch_of, BLUE, "{:,.0f}")
    right.set_ylim(bottom=0)
    has_data |= _finish(right, "images/s", ends)
    return _save(figure, title, has_data=has_data)


def confusion_matrix(confusion: Tensor, classes: Sequence[str]) -> bytes:
    """confusion: int64 (C, C), [truth, predicted]. Of more than 30 classes, those 30 that take part
    in most mistakes; a last column counts what went to the others."""
    wrong = confusion.clone().fill_diagonal_(0)
    title = "What was taken for what"
    if not int(confusion.sum()):
        return _save(_figure(6, 4), title, has_data=False)
    title += f": {100 * int(confusion.diagonal().sum()) / int(confusion.sum()):.1f} % right"
    order = (wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)
    shown = sorted(order[:SHOWN_CLASSES].tolist())
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
    names = [_plain(short[number]) for number in shown]
    heads = list(names)
    cells, totals = confusion[shown][:, shown], confusion[shown].sum(1, keepdim=True)
    share = (cells / totals.clamp_min(1)).double().numpy()
    right = np.eye(len(shown), dtype=bool)
    # Mistakes are rare: against 100 % they would not be seen.
    depth = np.where(right, share, np.sqrt(share / max(0.3, share[~right].max(initial=0))))
    if len(shown) < len(classes):
        title += f"; the {SHOWN_CLASSES} of {len(classes):,} classes with most mistakes"
        heads.append("any other")
        cells = torch.cat([cells, totals - cells.sum(1, keepdim=True)], 1)
        right, depth = np.pad(right, ((0, 0), (0, 1))), np.pad(depth, ((0, 0), (0, 1)))
    side = max(0.36 * len(heads), 3.6)  # inches
    figure = _figure(side + 2.6, side + 2.4)
    axes = figure.subplots()
    axes.imshow(_tint(depth, right))
    is_narrow = max(map(len, heads)) * 0.09 > side / len(heads)
    axes.set_xticks(range(len(heads)), heads, rotation=90 if is_narrow else 0, fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xticks(np.arange(len(heads) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, column in cells.nonzero().tolist():
        words = f"{int(cells[row, column])}"
        colour = "white" if depth[row, column] > 0.6 else INK
        axes.text(column, row, words, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("taken for", fontsize=9, color=GREY)
    axes.set_ylabel("truth", fontsize=9, color=GREY)
    legend = "blue: right, red: mistakes, darker: more of the truth's images"
    axes.set_title(legend, fontsize=9, loc="left", color=GREY)
    return _save(figure, title)


def image_grid(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], title: str, columns: int = 8
) -> bytes:
    """images: uint8 (H, W, 3) of any sizes, shown in squares; a small one's pixels as blocks."""
    columns = max(1, min(columns, len(images)))
    words = ["\n".join(textwrap.fill(line, 24) for line in one.split("\n")) for one in captions]
    lines = max((one.count("\n") + 1 for one in words), default=1)
    pitch, head = TILE + 8 + lines * LINE + GAP, 48  # pixels from row to row, and above the first
    width = max(4, columns) * (TILE + GAP) + GAP
    height = head + max(1, math.ceil(len(images) / columns)) * pitch
    sheet = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for number, (image, caption) in enumerate(zip(images, words, strict=True)):
        x = GAP + number % columns * (TILE + GAP)
        y = head + number // columns * pitch
        tile = _fitted(image)
        sheet.paste(PALE, (x, y, x + TILE, y + TILE))
        sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
        at = x / width, 1 - (y + TILE + 5) / height
        figure.text(*at, _plain(caption), va="top", fontsize=8, color=INK, linespacing=1.25)
    figure.figimage(np.asarray(sheet))  # pixel for pixel: nothing is blurred
    return _save(figure, title, has_data=len(images) > 0)


def _fitted(image: NDArray[np.uint8]) -> Image.Image:
    """At most TILE wide and high; enlarged by whole numbers only: pixels stay equally large."""
    height, width = image.shape[:2]
    scale, way = TILE / max(height, width), Image.Resampling.LANCZOS
    if scale >= 1:
        scale, way = math.floor(scale), Image.Resampling.NEAREST
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(image).resize(size, way)


def _tint(depth: NDArray[np.float64], is_right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """RGB of cells, pale where depth is 0: blue where right, else red."""
    colour = np.where(is_right[..., None], to_rgb(BLUE), to_rgb(RED))
    pale = np.array(to_rgb(PALE))
    tinted: NDArray[np.float64] = pale + (colour - pale) * depth[..., None]
    return tinted


def _figure(width: float, height: float) -> Figure:
    """width, height: inches. What is drawn in it begins below the title."""
    below = (0, 0, 1, 1 - 38 / DPI / height)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, rect=below)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def _finite(points: History, key: str) -> list[tuple[int, float]]:
    """Those that an axis can hold: numbers, and none that its own arithmetic would overflow at."""
    return [(step, value) for step, value in points.get(key, ()) if abs(value) < 1e30]


def _line(
    axes: Axes, points: Points, epoch_of: Callable[[int], float], colour: str, name: str
) -> list[End]:
    """A line, and its name for its end, where {} is its last value."""
    if not points:
        return []
    x, y = [epoch_of(step) for step, _ in points], [value for _, value in points]
    marker = "o" if len(points) < 30 else ""
    axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=4, clip_on=False)
    return [(y[-1], name.format(y[-1]), colour)]


def _noisy(
    axes: Axes, points: Points, epoch_of: Callable[[int], float], colour: str, name: str
) -> list[End]:
    """A line smoothed over its raw self."""
    axes.plot([epoch_of(step) for step, _ in points], [y for _, y in points], color=FAINT, lw=0.8)
    means = _smooth(points).tolist()
    smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
    return _line(axes, smooth, epoch_of, colour, name)


def _smooth(points: Points) -> NDArray[np.float64]:
    """A running mean over a fiftieth of the points, centred, so that it does not lag: (points,)."""
    values = np.array([value for _, value in points], dtype=np.float64)
    at, half = np.arange(len(values)), len(values) // 100
    begins, ends = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    means: NDArray[np.float64] = (sums[ends] - sums[begins]) / (ends - begins)
    return means


def _log_where_wide(axes: Axes) -> None:
    """A logarithmic axis where values above 0 span more than thirty times."""
    values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
    if values and min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _finish(axes: Axes, what: str, ends: Sequence[End]) -> bool:
    """A panel's frame, and the names of its lines at their ends. Whether it shows anything."""
    axes.set_title(what, fontsize=10, loc="left", color=GREY)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", labelsize=9, length=0, labelcolor=INK)
    if not ends:
        axes.set(xticks=[], yticks=[], facecolor=PALE)
        axes.text(0.5, 0.5, EMPTY, ha="center", color=GREY, transform=axes.transAxes)
        return False
    axes.grid(True, axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set(visible=True, color=FAINT)
    axes.set_xlabel("epoch", fontsize=9, color=GREY)
    axes.set_xlim(0, axes.dataLim.x1 if axes.dataLim.x1 > 0 else 1)
    axes.locator_params(axis="x", nbins=6)
    to_height = axes.transScale + axes.transLimits  # data -> 0..1
    heights = [min(max(0.0, float(to_height.transform((1, y))[1])), 1.0) for y, _, _ in ends]
    for (_, words, colour), height in zip(ends, _apart(heights), strict=True):
        where = axes.transAxes
        axes.text(1.015, height, words, size=9, color=colour, va="center", transform=where)
    return True


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights (0..1) moved as little as a line of text between any two needs, in their order."""
    line, order = 0.062, sorted(range(len(heights)), key=heights.__getitem__)
    placed = sorted(heights)
    for _ in range(50):
        placed[0] = max(placed[0], line / 2)
        for at in range(len(placed) - 1):
            lack = max(0.0, line - (placed[at + 1] - placed[at]))
            placed[at : at + 2] = [placed[at] - lack / 2, placed[at + 1] + lack / 2]
    return [placed[order.index(at)] for at in range(len(heights))]


def _plain(words: str) -> str:
    """So that a name with dollars is not taken for a formula."""
    return words.replace("$", r"\$")


def _save(figure: Figure, title: str, *, has_data: bool = True) -> bytes:
    said = title if has_data else f"{title}: {EMPTY}"
    width, height = figure.get_size_inches() * figure.dpi
    place = {"x": 12 / width, "y": 1 - 12 / height, "ha": "left", "va": "top"}
    figure.suptitle(_plain(said), fontsize=12, weight="bold", color=INK, **place)
    buffer = io.BytesIO()
    # The title is also for those who cannot see it; a tool's version would make equal ones differ.
    figure.savefig(buffer, format="png", metadata={"Title": said, "Software": None})
    return buffer.getvalue()
