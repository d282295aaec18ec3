"""HTML pages of a run, each one self-contained file. Pure."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestration.run.timeline import Attempt, goodput, interruptions

TEMPLATES = Path(__file__).with_name("templates")
MAX_PAIRS_SHOWN = 200
MAX_MATRIX_CLASSES = 50
MAX_CELLS = 100_000  # of about 14 bytes each
NO_DATA = "no data yet"


def confusion_page(confusion: Tensor, classes: Sequence[str]) -> str:
    """The misclassified pairs, most frequent first; a click on a class lists its errors. Up to 50
    classes are also shown as a matrix.

    confusion: int64 (C, C), [truth, predicted]. Only its nonzero cells are embedded, so that the
    page of 1,000 classes stays small.
    """
    wrong = confusion.clone().fill_diagonal_(0)
    pairs = wrong.nonzero()  # (cells, 2)
    cells = torch.cat([pairs, wrong[pairs[:, 0], pairs[:, 1], None]], 1).tolist()
    cells.sort(key=lambda cell: (-cell[2], cell[0], cell[1]))
    intro = NO_DATA
    if count := int(confusion.sum()):
        intro = (
            f"{int(wrong.sum()):,} of {count:,} images are misclassified, in {len(cells):,} "
            "different pairs of true and predicted class."
        )
    if len(cells) > MAX_CELLS:
        intro += f" This page holds the {MAX_CELLS:,} most frequent."
    data = {
        "classes": list(classes),
        "totals": confusion.sum(1).tolist(),
        "correct": confusion.diagonal().tolist(),
        "cells": cells[:MAX_CELLS],
        "max_pairs": MAX_PAIRS_SHOWN,
        "max_matrix": MAX_MATRIX_CLASSES,
    }
    return _render("confusion", title="Confusion matrix", intro=intro, data=data)


def class_page(rows: Sequence[tuple[str, int, float]]) -> str:
    """A table that sorts by the clicked column. rows: (class, images, percent correct)."""
    intro = NO_DATA
    if rows:
        mean, below = sum(row[2] for row in rows) / len(rows), sum(row[2] < 50 for row in rows)
        intro = (
            f"{len(rows):,} classes, lowest accuracy first. Mean accuracy: {mean:.1f} %. Classes "
            f"below 50 %: {below:,}."
        )
    data = {"rows": sorted(rows, key=lambda row: (row[2], row[0]))}
    return _render("classes", title="Per-class accuracy", intro=intro, data=data)


def timeline_page(attempts: Sequence[Attempt], name: str) -> str:
    """A bar for each of one or more attempts on one time axis, with the idle time before it in red;
    below, what ended each attempt and what that cost."""
    title = f"Timeline of attempts: {name}"
    start = attempts[0].began
    span_s = max(max(attempt.ended for attempt in attempts) - start, 1e-3)
    ends = [*interruptions(attempts), (attempts[-1].ended_by or "running", 0.0, 0)]
    rows = [
        {
            "start_s": attempt.began - start,
            "duration_s": attempt.ended - attempt.began,
            "startup_s": attempt.phases.get("workers", 0.0),
            "phases": ", ".join(f"{phase} {s:.1f} s" for phase, s in attempt.phases.items()),
            "ranks": attempt.ranks,
            "from_step": attempt.from_step,
            "to_step": attempt.to_step,
            "ended_by": ended_by,
            "idle_after_s": idle_s,
            "repeated_steps": repeated_steps,
        }
        for attempt, (ended_by, idle_s, repeated_steps) in zip(attempts, ends, strict=True)
    ]
    intro = (
        f"{len(attempts)} attempt{'s' if len(attempts) > 1 else ''} in {span_s:,.0f} s; goodput "
        f"{100 * goodput(attempts):.0f} % (time in steps that were not repeated). Started "
        f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC."
    )
    return _render(
        "timeline", title=title, intro=intro, rows=rows, span_s=span_s, ticks=_ticks(span_s)
    )


def _ticks(span_s: float) -> list[tuple[float, str]]:
    """(seconds, label) of up to nine round times on the axis."""
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    steps = [(unit, n) for unit in units for n in (1, 2, 5, 10, 15, 30) if n < 10 or unit != "h"]
    unit, step = next(
        ((unit, n) for unit, n in steps if span_s <= 8 * n * units[unit]),
        ("d", math.ceil(span_s / 8 / 86400)),
    )
    step_s = step * units[unit]
    return [(i * step_s, f"{i * step} {unit}") for i in range(int(span_s / step_s) + 1)]


def _render(page: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{page}.html.j2").render(values)
