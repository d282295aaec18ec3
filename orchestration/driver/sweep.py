"""Several runs under one MLflow parent: which they are, and what they came to. Pure."""

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
    """One run of a sweep. group: what its repetitions with other seeds share. The job is the
    file at `path` with `overrides`."""

    group: str
    job: Job
    path: Path
    overrides: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.group} seed={self.job.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A group's top-1 in percent over its seeds. spread: the sample standard deviation, None for
    fewer than two. failed: how many of its runs gave nothing."""

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

    grid: `FIELD=VALUE,VALUE`. Raises JobError for a job that is wrong, before anything runs, for
    jobs that differ in their cluster, storage or tracking, and for two of the same name.
    """
    axes = [_axis(entry) for entry in grid]
    trials = []
    for path in paths:
        for values in product(*axes):
            for seed in range(seeds):
                changes = (*overrides, *values, f"seed={seed}")
                job = load_job(path, changes)
                group = " ".join([job.name, *values])
                trials.append(Trial(group=group, job=job, path=path, overrides=changes))
    first = trials[0].job
    for trial in trials:
        for part in ("cluster", "storage", "tracking"):
            if getattr(trial.job, part) != getattr(first, part):
                raise JobError(
                    f"{part}: got another {part} in {trial.group} than in {trials[0].group}; the "
                    "runs of a sweep share it. Give them the same, or sweep them apart."
                )
    keys = [trial.key for trial in trials]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise JobError(
            f"name: got {twice[0]!r} twice; runs of a sweep are told apart by their names. Give "
            "each file a name of its own."
        )
    return trials


def digest(trials: Sequence[Trial]) -> str:
    """Names a sweep by all that its runs are: the same again is the same sweep."""
    text = "\0".join(f"{trial.key}\0{to_yaml(trial.job)}" for trial in trials)
    return sha256(text.encode()).hexdigest()[:16]


def summarize(trials: Sequence[Trial], top1: Mapping[str, float]) -> list[Row]:
    """One row a group, in the sweep's order. top1: by trial key, of the runs that ended well."""
    rows = []
    for group in dict.fromkeys(trial.group for trial in trials):
        keys = [trial.key for trial in trials if trial.group == group]
        got = [top1[key] for key in keys if key in top1 and isfinite(top1[key])]
        rows.append(
            Row(
                group=group,
                runs=len(got),
                failed=len(keys) - len(got),
                top1=mean(got) if got else None,
                spread=stdev(got) if len(got) > 1 else None,
                lowest=min(got, default=None),
                highest=max(got, default=None),
            )
        )
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for a document."""
    lines = ["| run | runs | top-1, mean | standard deviation | lowest to highest |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        runs = f"{row.runs}, {row.failed} failed" if row.failed else f"{row.runs}"
        lines.append(f"| {row.group} | {runs} | {' | '.join(cells(row))} |")
    return "\n".join(lines) + "\n"


def cells(row: Row) -> tuple[str, str, str]:
    """Mean, deviation and range in words."""
    if row.top1 is None:
        return "-", "-", "-"
    spread = "-" if row.spread is None else f"{row.spread:.2f}"
    return f"{row.top1:.2f}", spread, f"{row.lowest:.2f} to {row.highest:.2f}"


def _axis(entry: str) -> list[str]:
    name, _, values = entry.partition("=")
    if not name or not values:
        raise JobError(
            f"--grid: got {entry!r}; FIELD=VALUE,VALUE. Write it like optim.lr=0.02,0.045."
        )
    return [f"{name}={value}" for value in values.split(",")]
