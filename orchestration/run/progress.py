"""One moment of a run, and its line: printed where there is no terminal, read again by `--follow`
on another machine. Pure."""

import re
from typing import TypedDict


class Progress(TypedDict):
    """One moment of a run."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    images_per_second: float
    data_wait_fraction: float
    top1: float | None  # of the last evaluation, percent
    attempt: int
    ranks: int
    checkpoint_s: float  # how long the last one took to write
    eta_s: float  # to the last step, at the speed of this attempt
    from_step: int  # after which this attempt began
    trained_s: float  # of this attempt's steps
    is_evaluated: bool  # whether top1 is of this step


LINE = re.compile(
    r"step (?P<step>\d+)/(?P<total_steps>\d+): epoch (?P<epoch>[\d.]+), loss (?P<loss>\S+), "
    r"(?P<images_per_second>\d+) images/s, data wait (?P<data_wait>\d+) %"
    r"(, top-1 (?P<top1>[\d.]+) %)?, (?P<ranks>\d+) ranks?, (?P<eta>[\d:]+) left"
    r"(, attempt (?P<attempt>\d+))?$"
)


def summarize_progress(progress: Progress) -> str:
    """What follows `step 12/360: `."""
    top1 = f", top-1 {progress['top1']:.1f} %" if progress["top1"] is not None else ""
    again = f", attempt {progress['attempt']}" if progress["attempt"] > 1 else ""
    ranks = f"{progress['ranks']} rank{'s' if progress['ranks'] != 1 else ''}"
    return (
        f"epoch {progress['epoch']:.2f}, loss {progress['loss']:.3f}, "
        f"{progress['images_per_second']:.0f} images/s, data wait "
        f"{100 * progress['data_wait_fraction']:.0f} %{top1}, {ranks}, "
        f"{clock(progress['eta_s'])} left{again}"
    )


def format_progress(progress: Progress) -> str:
    return f"step {progress['step']}/{progress['total_steps']}: {summarize_progress(progress)}"


def parse_progress(line: str) -> Progress | None:
    """The moment that `to_line` wrote, to the digits that it wrote; None for any other line."""
    found = LINE.match(line.strip())
    if found is None:
        return None
    seconds = 0
    for part in found["eta"].split(":"):
        seconds = 60 * seconds + int(part)
    return Progress(
        step=int(found["step"]),
        total_steps=int(found["total_steps"]),
        epoch=float(found["epoch"]),
        loss=float(found["loss"]),
        images_per_second=float(found["images_per_second"]),
        data_wait_fraction=int(found["data_wait"]) / 100,
        top1=None if found["top1"] is None else float(found["top1"]),
        attempt=int(found["attempt"] or 1),
        ranks=int(found["ranks"]),
        checkpoint_s=0.0,
        eta_s=float(seconds),
        from_step=0,
        trained_s=0.0,
        is_evaluated=False,
    )


def clock(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, rest = divmod(round(min(seconds, 1e7)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
