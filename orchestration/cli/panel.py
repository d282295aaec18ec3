"""A run's progress, as a person watches it: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel as RichPanel
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestration.job.plan import Plan
from orchestration.run.progress import (
    Progress,
    clock,
    format_progress,
    parse_progress,
    summarize_progress,
)

POLL_S = 0.5
LINE_EVERY_S = 5.0  # where there is no terminal to redraw


@contextlib.contextmanager
def show_progress(console: Console, progress_actor: Any, plan: Plan) -> Iterator[None]:
    """Redraws what rank 0 posts on `board` until the block ends."""
    import ray

    bar = Bars(
        BarColumn(bar_width=12),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting the workers", total=plan.total_steps)
    done = threading.Event()

    def follow() -> None:
        said: Progress | None = None  # in the last line
        last_line = 0.0
        waited = 0.0
        while not done.wait(POLL_S):
            waited += POLL_S
            try:
                progress: Progress | None = ray.get(progress_actor.read.remote(), timeout=10)
            except Exception:  # the cluster is going down, or busy: the run itself says so
                continue
            if progress is None or progress == said:
                continue
            line = summarize_progress(progress)
            bar.update(task, completed=progress["step"], description=line)
            is_again = said is None or said["attempt"] != progress["attempt"]
            if bar.disable and (is_again or waited - last_line >= LINE_EVERY_S):
                last_line, said = waited, progress
                console.print(format_progress(progress), soft_wrap=True)

    follower = threading.Thread(target=follow, name="progress", daemon=True)
    with bar:
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join(15)


class Panel:
    """What `--follow` shows of a run elsewhere: one panel that is redrawn, other lines above it.
    Without a terminal, the lines as they come."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._progress: Progress | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Panel":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, line: str) -> None:
        progress = parse_progress(line)
        if progress is None or not self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        if progress is not None:
            self._progress = progress
        if self._progress is not None and self._console.is_terminal:
            self._live.update(draw(self._title, self._progress), refresh=True)


def draw(title: str, progress: Progress) -> RichPanel:
    """A moment as a panel of two columns under its bar."""
    rows = Table.grid(padding=(0, 3))
    top1 = "-" if progress["top1"] is None else f"{progress['top1']:.1f} %"
    for left, right in (
        (f"loss {progress['loss']:.3f}", f"top-1 {top1}"),
        (f"{progress['images_per_second']:.0f} images/s", f"epoch {progress['epoch']:.2f}"),
        (
            f"data wait {100 * progress['data_wait_fraction']:.0f} %",
            f"{progress['ranks']} ranks alive, attempt {progress['attempt']}",
        ),
    ):
        rows.add_row(left, right)
    bar = ProgressBar(total=progress["total_steps"], completed=progress["step"], width=40)
    steps = f"step {progress['step']} of {progress['total_steps']}, {clock(progress['eta_s'])} left"
    lines = Table.grid()  # a bar ends no line by itself
    for line in (bar, steps, rows):
        lines.add_row(line)
    return RichPanel(lines, title=title, expand=False)
