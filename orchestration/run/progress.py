"""A progress report and its log line, which `--follow` parses on another machine. Pure."""

import re
from typing import TypedDict


class Progress(TypedDict):
    step: int
    total_steps: int
    epoch: float
    loss: float
    images_per_second: float
    data_wait_fraction: float
    top1: float | None  # of the last evaluation, percent
    attempt: int
    ranks: int
    checkpoint_s: float  # that writing the last one took
    eta_s: float  # until the last step, at the speed of this attempt
    from_step: int  # after which this attempt started
    trained_s: float  # of this attempt's steps
    is_evaluated: bool  # whether top1 is of this step
    devices: str  # kinds of device of this attempt's ranks


LINE = re.compile(
    r"step (?P<step>\d+)/(?P<total_steps>\d+): epoch (?P<epoch>[\d.]+), loss (?P<loss>\S+), "
    r"(?P<images_per_second>\d+) images/s, data wait (?P<data_wait>\d+) %"
    r"(, top-1 (?P<top1>[\d.]+) %)?, (?P<ranks>\d+) ranks?, (?P<eta>[\d:]+) left"
    r"(, attempt (?P<attempt>\d+))?$"
)


def summarize_progress(progress: Progress) -> str:
    """The log line without its `step 12/360: `."""
    top1 = f", top-1 {progress['top1']:.1f} %" if progress["top1"] is not None else ""
    attempt = f", attempt {progress['attempt']}" if progress["attempt"] > 1 else ""
    ranks = f"{progress['ranks']} rank{'s' if progress['ranks'] != 1 else ''}"
    return (
        f"epoch {progress['epoch']:.2f}, loss {progress['loss']:.3f}, "
        f"{progress['images_per_second']:.0f} images/s, data wait "
        f"{100 * progress['data_wait_fraction']:.0f} %{top1}, {ranks}, "
        f"{format_duration(progress['eta_s'])} left{attempt}"
    )


def format_progress(progress: Progress) -> str:
    return f"step {progress['step']}/{progress['total_steps']}: {summarize_progress(progress)}"


def parse_progress(line: str) -> Progress | None:
    """The report in a line of `format_progress`, rounded as printed; None for any other line."""
    match = LINE.match(line.strip())
    if match is None:
        return None
    seconds = 0
    for part in match["eta"].split(":"):
        seconds = 60 * seconds + int(part)
    return Progress(
        step=int(match["step"]),
        total_steps=int(match["total_steps"]),
        epoch=float(match["epoch"]),
        loss=float(match["loss"]),
        images_per_second=float(match["images_per_second"]),
        data_wait_fraction=int(match["data_wait"]) / 100,
        top1=None if match["top1"] is None else float(match["top1"]),
        attempt=int(match["attempt"] or 1),
        ranks=int(match["ranks"]),
        checkpoint_s=0.0,
        eta_s=float(seconds),
        from_step=0,
        trained_s=0.0,
        is_evaluated=False,
        devices="",
    )


def format_duration(seconds: float) -> str:
    """`1:02:03`, `2:03`."""
    minutes, rest = divmod(round(min(seconds, 1e7)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
