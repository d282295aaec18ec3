"""A run's progress, as a person watches it: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from orchestration.plan import Plan
from orchestration.progress import Progress as Moment

POLL_S = 0.5
LINE_EVERY_S = 5.0  # where there is no terminal to redraw


@contextlib.contextmanager
def show_progress(console: Console, board: Any, plan: Plan) -> Iterator[None]:
    """Redraws what rank 0 posts on `board` until the block ends."""
    bar = Progress(
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
        last_line = 0.0
        waited = 0.0
        while not done.wait(POLL_S):
            waited += POLL_S
            try:
                moment: Moment | None = ray.get(board.read.remote(), timeout=10)
            except Exception:  # the cluster is going down, or busy: the run itself says so
                continue
            if moment is None:
                continue
            line = describe(moment)
            bar.update(task, completed=moment["step"], description=line)
            if bar.disable and waited - last_line >= LINE_EVERY_S:
                last_line = waited
                console.print(
                    f"step {moment['step']}/{moment['total_steps']}: {line}", soft_wrap=True
                )

    follower = threading.Thread(target=follow, name="progress", daemon=True)
    with bar:
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join(15)


def describe(moment: Moment) -> str:
    """One moment of a run in a line."""
    top1 = f", top-1 {moment['top1']:.1f} %" if moment["top1"] is not None else ""
    again = f", attempt {moment['attempt']}" if moment["attempt"] > 1 else ""
    return (
        f"epoch {moment['epoch']:.2f}, loss {moment['loss']:.3f}, "
        f"{moment['images_per_second']:.0f} images/s, data wait "
        f"{100 * moment['data_wait_fraction']:.0f} %{top1}{again}"
    )
