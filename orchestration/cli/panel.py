"""The progress of a run: a bar or a panel on a terminal, a line now and then elsewhere."""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table

from orchestration.cli.tables import console
from orchestration.job.plan import Plan
from orchestration.run.progress import (
    Progress,
    format_duration,
    format_progress,
    parse_progress,
    summarize_progress,
)

POLL_S = 0.5
LINE_EVERY_S = 5.0  # without a terminal to redraw


@contextlib.contextmanager
def show_progress(progress_actor: Any, plan: Plan) -> Iterator[None]:
    """Shows what rank 0 reports to the progress actor, until the block ends."""
    import ray

    bar = Bar(
        BarColumn(bar_width=12),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task("starting the workers", total=plan.total_steps)
    done = threading.Event()

    def poll() -> None:
        printed: Progress | None = None
        printed_s = waited_s = 0.0
        while not done.wait(POLL_S):
            waited_s += POLL_S
            try:
                progress: Progress | None = ray.get(progress_actor.read.remote(), timeout=10)
            except Exception:  # the cluster is busy or shutting down: the run reports that itself
                continue
            if progress is None or progress == printed:
                continue
            description = summarize_progress(progress)
            bar.update(task, completed=progress["step"], description=description)
            is_new_attempt = printed is None or printed["attempt"] != progress["attempt"]
            if bar.disable and (is_new_attempt or waited_s - printed_s >= LINE_EVERY_S):
                printed, printed_s = progress, waited_s
                console.print(format_progress(progress), soft_wrap=True)

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(15)


def show_log(console: Console, title: str, lines: Iterable[str]) -> None:
    """Shows a submission's log as its lines come; on a terminal, its progress is one panel that is
    redrawn, with the other lines above it."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for line in lines:
            progress = parse_progress(line)
            if progress is None or not console.is_terminal:
                console.print(line, markup=False, soft_wrap=True)
            else:
                live.update(_draw(title, progress), refresh=True)


def _draw(title: str, progress: Progress) -> Panel:
    top1 = "-" if progress["top1"] is None else f"{progress['top1']:.1f} %"
    values = Table.grid(padding=(0, 3))
    values.add_row(f"loss {progress['loss']:.3f}", f"top-1 {top1}")
    values.add_row(
        f"{progress['images_per_second']:.0f} images/s", f"epoch {progress['epoch']:.2f}"
    )
    values.add_row(
        f"data wait {100 * progress['data_wait_fraction']:.0f} %",
        f"{progress['ranks']} ranks, attempt {progress['attempt']}",
    )
    lines = Table.grid()  # a bar does not end its line
    lines.add_row(ProgressBar(total=progress["total_steps"], completed=progress["step"], width=40))
    left = format_duration(progress["eta_s"])
    lines.add_row(f"step {progress['step']} of {progress['total_steps']}, {left} left")
    lines.add_row(values)
    return Panel(lines, title=title, expand=False)
