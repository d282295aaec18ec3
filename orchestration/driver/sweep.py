"""The trials of a sweep, and their results as a table. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import mean, stdev

from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import load_job, to_yaml


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a sweep: the job in the file at `path` with `overrides`. group: names the trials
    that differ only in their seeds."""

    group: str
    job: Job
    path: Path
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.group} seed={self.job.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A group's top-1 in percent over its finished runs. spread: the sample standard deviation,
    None for fewer than two runs. failed: its runs without a finite result."""

    group: str
    runs: int
    failed: int
    top1: float | None
    spread: float | None
    lowest: float | None
    highest: float | None


def expand(
    paths: Sequence[Path], overrides: Sequence[str], grid: Sequence[str], seeds: int
) -> list[Trial]:
    """Every file with every combination of the grid, each with seeds 0 .. seeds - 1.

    grid: `FIELD=VALUE,VALUE`. Raises JobError for an invalid job, for jobs that differ in their
    cluster, storage or tracking, and for two trials with the same key.
    """
    axes = [_parse_axis(entry) for entry in grid]
    trials = []
    for path, values, seed in product(paths, product(*axes), range(seeds)):
        changes = (*overrides, *values, f"seed={seed}")
        job = load_job(path, changes)
        group = " ".join([job.name, *values])
        trials.append(Trial(group=group, job=job, path=path, overrides=changes))
    for trial in trials:
        for part in ("cluster", "storage", "tracking"):
            if getattr(trial.job, part) != getattr(trials[0].job, part):
                raise JobError(
                    f"{part}: got another {part} in {trial.group} than in {trials[0].group}; the "
                    "runs of a sweep share it. Give them the same, or sweep them separately."
                )
    key, count = Counter(trial.key for trial in trials).most_common(1)[0]
    if count > 1:
        raise JobError(
            f"name: got {key!r} twice; the runs of a sweep have different names. Give each file a "
            "name of its own."
        )
    return trials


def digest(trials: Sequence[Trial]) -> str:
    """Identifies a sweep by the keys and jobs of its trials."""
    text = "\0".join(f"{trial.key}\0{to_yaml(trial.job)}" for trial in trials)
    return sha256(text.encode()).hexdigest()[:16]


def summarize(trials: Sequence[Trial], top1: Mapping[str, float]) -> list[Row]:
    """One row per group, in the sweep's order. top1: by trial key, of the finished runs."""
    rows = []
    for group in dict.fromkeys(trial.group for trial in trials):
        keys = [trial.key for trial in trials if trial.group == group]
        values = [top1[key] for key in keys if key in top1 and isfinite(top1[key])]
        rows.append(
            Row(
                group=group,
                runs=len(values),
                failed=len(keys) - len(values),
                top1=mean(values) if values else None,
                spread=stdev(values) if len(values) > 1 else None,
                lowest=min(values, default=None),
                highest=max(values, default=None),
            )
        )
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| run | runs | top-1, mean | standard deviation | lowest to highest |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(format_row(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def format_row(row: Row) -> tuple[str, str, str, str, str]:
    """A row's group, runs, mean, standard deviation and range, as text."""
    runs = f"{row.runs}, {row.failed} failed" if row.failed else f"{row.runs}"
    if row.top1 is None:
        return row.group, runs, "-", "-", "-"
    spread = "-" if row.spread is None else f"{row.spread:.2f}"
    return row.group, runs, f"{row.top1:.2f}", spread, f"{row.lowest:.2f} to {row.highest:.2f}"


def _parse_axis(entry: str) -> list[str]:
    """`lr=1,2` -> lr=1, lr=2."""
    name, _, values = entry.partition("=")
    if not name or not values:
        raise JobError(
            f"--grid: got {entry!r}; FIELD=VALUE,VALUE. Write it like optim.lr=0.02,0.045."
        )
    return [f"{name}={value}" for value in values.split(",")]
