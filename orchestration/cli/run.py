"""Commands that train: run, resume, fork, sweep."""

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from orchestration.cli.data import (
    AsJson,
    Endpoint,
    JobFile,
    NoWait,
    Overrides,
    RunName,
    RunUrl,
    ignore_line,
    read_job,
    using_store,
)
from orchestration.cli.panel import show_progress
from orchestration.cli.submissions import submit_from_run, submit_sweep
from orchestration.cli.tables import log_line, outcome_parts, print_result, reserve_stdout
from orchestration.cluster.connect import open_cluster
from orchestration.driver.sweep import Trial, digest, expand, format_row, summarize, to_markdown
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError, TrainingError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.job import Job
from orchestration.job.load import apply_overrides, from_dict
from orchestration.run.phases import Phases

if TYPE_CHECKING:
    from orchestration.run.checkpoint import Checkpoint
    from orchestration.run.record import ResumedRun
    from orchestration.stack.state import Stack
    from orchestration.tracking.run_ref import RunRef

DRIVER = "orchestration.driver.driver"  # imports Ray
MAX_NOTE = 5000  # characters of a run's description; MLflow accepts 8,000
Address = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard URL of the cluster to run on. Left out: run here."),
]


def run(
    file: JobFile,
    overrides: Overrides = None,
    name: RunName = None,
    no_wait: NoWait = False,
    child_of: Annotated[str | None, typer.Option(hidden=True)] = None,
    trial: Annotated[str, typer.Option(hidden=True)] = "",
    as_json: AsJson = False,
) -> None:
    """Train a job and wait for it; services that it calls `local` are started on this machine."""
    start_s = time.monotonic()
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise JobError(
            f"--name: got {name!r}; letters, digits, dots, hyphens and underscores, at most 100 "
            "(it names a folder). Choose such a name."
        )
    child = None if child_of is None else (child_of, trial)
    job = read_job(file, overrides, no_wait=no_wait)
    _train(job, start_s, as_json, name=name, child=child)


def resume(
    url: RunUrl,
    overrides: Overrides = None,
    endpoint_url: Endpoint = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Resume an incomplete run: same samples, same MLflow run, any cluster."""
    from orchestration.run.record import find_resumed, load_record

    start_s = time.monotonic()
    url = url.rstrip("/")
    if address is not None:
        submit_from_run(("resume", url, *(overrides or [])), endpoint_url, address, as_json)
        return
    with using_store(endpoint_url) as store:
        job = apply_overrides(from_dict(load_record(store, url).job), overrides or [])
        _train(job, start_s, as_json, resumed=find_resumed(store, url, job))


def fork(
    url: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="URL of a run's folder or of a checkpoint.")
    ],
    overrides: Overrides = None,
    endpoint_url: Endpoint = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Start a new run from another run's checkpoint: its state and its position in the data."""
    from orchestration.evaluation.trained import find_checkpoint
    from orchestration.run.record import check_forked

    start_s = time.monotonic()
    if address is not None:
        submit_from_run(("fork", url, *(overrides or [])), endpoint_url, address, as_json)
        return
    with using_store(endpoint_url) as store:
        record, _, checkpoint = find_checkpoint(store, url)
        forked = from_dict(record.job)
        job = apply_overrides(forked, overrides or [])
        check_forked(forked, job)
        _train(job, start_s, as_json, start_from=checkpoint)


def sweep(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... [FIELD=VALUE]...", help="Jobs, and overrides.")
    ],
    grid: Annotated[
        list[str] | None, typer.Option(help="FIELD=VALUE,VALUE; each combination runs.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds from 0.")] = 1,
    limit: Annotated[
        int, typer.Option(min=1, help="Runs at once, each a submission; on a Ray cluster.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Train several jobs under one MLflow run, one after the other or `--limit` at once; called
    again, it continues.

    A run that fails is reported and counted; the others continue. Exit code 4 if one failed.
    """
    files = [Path(argument) for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise JobError("FILE: got none; a sweep runs at least one job. Name its YAML.")
    trials = expand(files, overrides, grid or [], seeds)
    cluster = trials[0].job.cluster
    if is_remote(cluster.address):
        options = [word for axis in grid or [] for word in ("--grid", axis)]
        options += ["--seeds", str(seeds), "--limit", str(limit)]
        jobs = [read_job(file, overrides) for file in files]
        submit_sweep(jobs, options, f"{len(trials)} runs, {limit} at once", as_json)
        return
    if limit > 1 and cluster.address == LOCAL:
        raise JobError(
            f"--limit: got {limit} with cluster.address local; this machine's runs go one after "
            "the other. Leave it out, or name a cluster (cluster.address=auto, or its URL)."
        )
    with (
        reserve_stdout(as_json),
        open_cluster(trials[0].job, log_line, module=DRIVER, is_training=True) as stack,
    ):
        top1, page = _run_trials(trials, stack, limit)
    rows = summarize(trials, top1)
    table = Table("run", "runs", "top-1 %", "deviation", "lowest to highest")
    for row in rows:
        table.add_row(*format_row(row))
    values = {"page": page, "rows": [asdict(row) for row in rows]}
    print_result(as_json, values, table, f"View it in MLflow: {page}")
    if any(row.failed for row in rows):
        raise typer.Exit(TrainingError.exit_code)


def _run_trials(
    trials: list[Trial], stack: "Stack | None", limit: int
) -> tuple[dict[str, float], str]:
    """Runs the trials that are not finished; -> (top-1 by trial, URL of the parent run)."""
    from orchestration.driver.run import tracking_uri
    from orchestration.tracking import runs

    job = trials[0].job
    names = list(dict.fromkeys(trial.job.name for trial in trials))
    name = names[0] if len(names) == 1 else f"{names[0]}-to-{names[-1]}"
    parent = runs.open_parent(
        tracking_uri(job, stack), experiment=job.experiment, name=name, digest=digest(trials)
    )
    top1 = runs.finished_children(parent)
    if limit > 1:
        from orchestration.driver.sweep_submissions import run_concurrently

        top1 = run_concurrently(trials, parent, top1, limit=limit, log=log_line)
    else:
        _run_in_turn(trials, parent, top1, stack)
    table = to_markdown(summarize(trials, top1))
    status = "FINISHED" if len(top1) == len(trials) else "FAILED"
    note = table if len(table) < MAX_NOTE else "The table is the artifact sweep.md."
    try:
        runs.log_file(parent, "sweep.md", table.encode())
        runs.close_run(parent, status, {runs.NOTE_TAG: note})
    except ServiceError as error:  # the command still prints the table
        log_line(f"note: {error}")
    return top1, f"{parent.uri}{parent.overview}"


def _run_in_turn(
    trials: list[Trial], parent: "RunRef", top1: dict[str, float], stack: "Stack | None"
) -> None:
    """Runs the trials that are not in `top1`, and adds those that succeed."""
    from orchestration.cluster.prestart import prestart_workers
    from orchestration.driver.driver import drive
    from orchestration.driver.run import Request

    is_first = True
    for number, trial in enumerate(trials, start=1):
        label = f"{number} of {len(trials)}: {trial.key}"
        if trial.key in top1:
            log_line(f"{label} has run already, top-1 {top1[trial.key]:.2f} %")
            continue
        log_line(label)
        if not is_first:  # on_cluster has started the workers of the first one
            prestart_workers(trial.job)
        is_first = False
        request = Request(job=trial.job, parent=(parent, trial.key))
        try:
            outcome = drive(request, stack=stack, log=ignore_line, show_progress=show_progress)
        except EXPECTED_ERRORS as error:
            log_line(f"{trial.key} failed: {error}")
            continue
        top1[trial.key] = outcome.top1
        log_line(f"top-1 {outcome.top1:.2f} % in {outcome.wall_s:.0f} s")


def _train(
    job: Job, start_s: float, as_json: bool, *, resumed: "ResumedRun | None" = None,
    start_from: "Checkpoint | None" = None, name: str | None = None,
    child: tuple[str, str] | None = None,
) -> None:  # fmt: skip
    """Drives one run on its cluster and prints the outcome.

    start_s: monotonic time of the command's start. child: (run id of a sweep's parent, this run's
    key in it). The others are fields of a Request, which can be imported only when Ray can be.
    """
    phases = Phases.of_process()
    phases.end("command")
    with (
        reserve_stdout(as_json),
        open_cluster(job, log_line, phases, module=DRIVER, is_training=True) as stack,
    ):
        from orchestration.driver.driver import drive
        from orchestration.driver.run import Request, tracking_uri
        from orchestration.tracking.run_ref import RunRef

        parent = None
        if child is not None:
            run_id, key = child
            parent = RunRef(uri=tracking_uri(job, stack), experiment_id="", run_id=run_id), key
        request = Request(job=job, parent=parent, resumed=resumed, start_from=start_from, name=name)
        outcome = drive(
            request, stack=stack, log=log_line, show_progress=show_progress, phases=phases
        )
    wall_s = time.monotonic() - start_s
    values = {**asdict(outcome), "wall_s": wall_s}
    print_result(as_json, values, *outcome_parts(job, outcome, wall_s))
