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
from orchestration.run.progress import Progress, clock, describe, parse_line, to_line

POLL_S = 0.5
LINE_EVERY_S = 5.0  # where there is no terminal to redraw


@contextlib.contextmanager
def show_progress(console: Console, board: Any, plan: Plan) -> Iterator[None]:
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
                moment: Progress | None = ray.get(board.read.remote(), timeout=10)
            except Exception:  # the cluster is going down, or busy: the run itself says so
                continue
            if moment is None or moment == said:
                continue
            line = describe(moment)
            bar.update(task, completed=moment["step"], description=line)
            is_again = said is None or said["attempt"] != moment["attempt"]
            if bar.disable and (is_again or waited - last_line >= LINE_EVERY_S):
                last_line, said = waited, moment
                console.print(to_line(moment), soft_wrap=True)

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
        self._moment: Progress | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Panel":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, line: str) -> None:
        moment = parse_line(line)
        if moment is None or not self._console.is_terminal:
            self._console.print(line, markup=False, soft_wrap=True)
        if moment is not None:
            self._moment = moment
        if self._moment is not None and self._console.is_terminal:
            self._live.update(draw(self._title, self._moment), refresh=True)


def draw(title: str, moment: Progress) -> RichPanel:
    """A moment as a panel of two columns under its bar."""
    rows = Table.grid(padding=(0, 3))
    top1 = "-" if moment["top1"] is None else f"{moment['top1']:.1f} %"
    for left, right in (
        (f"loss {moment['loss']:.3f}", f"top-1 {top1}"),
        (f"{moment['images_per_second']:.0f} images/s", f"epoch {moment['epoch']:.2f}"),
        (
            f"data wait {100 * moment['data_wait_fraction']:.0f} %",
            f"{moment['ranks']} ranks alive, attempt {moment['attempt']}",
        ),
    ):
        rows.add_row(left, right)
    bar = ProgressBar(total=moment["total_steps"], completed=moment["step"], width=40)
    steps = f"step {moment['step']} of {moment['total_steps']}, {clock(moment['eta_s'])} left"
    lines = Table.grid()  # a bar ends no line by itself
    for line in (bar, steps, rows):
        lines.add_row(line)
    return RichPanel(lines, title=title, expand=False)
