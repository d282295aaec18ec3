"""The verbs that train: run, resume, fork, sweep."""

import re
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestration.cli.data import AsJson, Endpoint, using_store
from orchestration.cli.submissions import send_on, send_sweep
from orchestration.cli.tables import echo, kept_for_json, own_name, print_json, print_outcome
from orchestration.cluster.connect import on_cluster
from orchestration.driver.sweep import Trial, cells, digest, expand, summarize, to_markdown
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError, TrainingError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.job import Job
from orchestration.job.load import from_dict, load_job, override
from orchestration.run.phases import Phases

if TYPE_CHECKING:
    from orchestration.run.checkpoint import Checkpoint
    from orchestration.run.record import ResumedRun
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack

console = Console(highlight=False)
MAX_NOTE = 5000  # letters of a description; MLflow takes 8,000
NoWait = Annotated[bool, typer.Option("--no-wait", help="Fail where there is no room now.")]


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name; one of that name that has begun goes on.")
    ] = None,
    no_wait: NoWait = False,
    child_of: Annotated[str | None, typer.Option(hidden=True)] = None,
    trial: Annotated[str, typer.Option(hidden=True)] = "",
    as_json: AsJson = False,
) -> None:
    """Train a job and wait for it; what it calls `local` is started on this machine."""
    began = time.monotonic()
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise JobError(
            f"--name: got {name!r}; letters, digits, dots, hyphens and underscores, at most 100 "
            "(it names a folder). Give such a name."
        )
    given = [*(overrides or []), *(["cluster.wait_s=0"] if no_wait else [])]
    child = None if child_of is None else (child_of, trial)
    _train(load_job(file, given), began, as_json, name=name, child=child)


SentTo = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard URL of a cluster that is to do it (else: here)."),
]
RunUrl = Annotated[str, typer.Argument(metavar="RUN", help="URL of the run's folder in storage.")]


def resume(
    url: RunUrl,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Where it goes on: cluster and the like."),
    ] = None,
    endpoint_url: Endpoint = None,
    address: SentTo = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that ended before its end: same samples, same MLflow run, any cluster."""
    from orchestration.run.record import find_resumed, load_record

    began = time.monotonic()
    url = url.rstrip("/")
    if address is not None:
        send_on("resume", url, overrides or [], endpoint_url, address, as_json)
        return
    with using_store(endpoint_url) as store:
        job = override(from_dict(load_record(store, url).job), overrides or [])
        _train(job, began, as_json, resumed=find_resumed(store, url, job))


def fork(
    url: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="URL of a run's folder or of a checkpoint.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="What the new run does otherwise."),
    ] = None,
    endpoint_url: Endpoint = None,
    address: SentTo = None,
    as_json: AsJson = False,
) -> None:
    """Begin a new run from a checkpoint of another one: its state, its place in the data."""
    from orchestration.evaluation.trained import find_checkpoint
    from orchestration.run.record import check_forked

    began = time.monotonic()
    if address is not None:
        send_on("fork", url, overrides or [], endpoint_url, address, as_json)
        return
    with using_store(endpoint_url) as store:
        record, _, state = find_checkpoint(store, url)
        before = from_dict(record.job)
        job = override(before, overrides or [])
        check_forked(before, job)
        _train(job, began, as_json, start_from=state)


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
    """Train several jobs under one MLflow run, one after the other or `--limit` at once; again goes
    on where it ended.

    A run that fails is told and counted; the others go on. Exit code 4 if one failed.
    """
    files = [Path(argument) for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if not files:
        raise JobError("FILE: got none; a sweep runs at least one job. Name its YAML.")
    trials = expand(files, overrides, grid or [], seeds)
    cluster = trials[0].job.cluster
    if is_remote(cluster.address):
        send_sweep(trials, files, overrides, grid or [], seeds, limit, as_json)
        return
    if limit > 1 and cluster.address == LOCAL:
        raise JobError(
            f"--limit: got {limit} with cluster.address local; this machine's runs go one after "
            "the other. Leave it out, or name a cluster (cluster.address=auto, or its URL)."
        )
    log, screen = _voices(as_json)
    with kept_for_json(as_json), on_cluster(trials[0].job, log, is_training=True) as stack:
        top1, page = _sweep(trials, stack, log, screen, limit)
    rows = summarize(trials, top1)
    if as_json:
        print_json({"page": page, "rows": [asdict(row) for row in rows]})
    else:
        table = Table("run", "runs", "top-1 %", "deviation", "lowest to highest")
        for row in rows:
            failed = f", {row.failed} failed" if row.failed else ""
            table.add_row(row.group, f"{row.runs}{failed}", *cells(row))
        console.print(table)
        console.print(f"look at it: {page}", soft_wrap=True)
    if any(row.failed for row in rows):
        raise typer.Exit(TrainingError.exit_code)


def _sweep(
    trials: list[Trial], stack: "Stack | None", log: "Log", screen: Console, limit: int
) -> tuple[dict[str, float], str]:
    """Runs what has not run yet; -> (top-1 by trial, where the parent is seen)."""
    from orchestration.cli.panel import show_progress
    from orchestration.cluster.prestart import prestart_workers
    from orchestration.driver.driver import Request, drive
    from orchestration.driver.run_start import tracking_uri
    from orchestration.tracking.runs import (
        NOTE_TAG,
        close_run,
        finished_children,
        log_text,
        open_parent,
    )

    job = trials[0].job
    names = list(dict.fromkeys(trial.job.name for trial in trials))
    name = names[0] if len(names) == 1 else f"{names[0]}-to-{names[-1]}"
    parent = open_parent(
        tracking_uri(job, stack), experiment=job.experiment, name=name, digest=digest(trials)
    )
    top1 = finished_children(parent)
    one_by_one, has_run = trials, False
    if limit > 1:
        from orchestration.driver.sweep_submissions import run_some_at_once

        top1 = run_some_at_once(trials, parent, top1, limit=limit, log=log)
        one_by_one = []
    for number, trial in enumerate(one_by_one, start=1):
        what = f"{number} of {len(trials)}: {trial.key}"
        if trial.key in top1:
            log(f"{what} has run already, top-1 {top1[trial.key]:.2f} %")
            continue
        log(what)
        if has_run:  # those of the first one began when the cluster was joined
            prestart_workers(trial.job)
        has_run = True
        try:
            outcome = drive(
                Request(job=trial.job, parent=(parent, trial.key)),
                stack=stack,
                log=lambda line: None,
                show_progress=partial(show_progress, screen),
            )
        except EXPECTED_ERRORS as error:
            log(f"{trial.key} failed: {error}")
            continue
        top1[trial.key] = outcome.top1
        log(f"top-1 {outcome.top1:.2f} % in {outcome.wall_s:.0f} s")
    table = to_markdown(summarize(trials, top1))
    status = "FINISHED" if len(top1) == len(trials) else "FAILED"
    note = table if len(table) < MAX_NOTE else "The table is the artifact sweep.md."
    try:
        log_text(parent, table, "sweep.md")
        close_run(parent, status, {NOTE_TAG: note})
    except ServiceError as error:  # the table is printed all the same
        log(f"note: {error}")
    return top1, f"{parent.uri}{parent.overview}"


def _train(
    job: Job,
    began: float,
    as_json: bool,
    *,
    resumed: "ResumedRun | None" = None,
    start_from: "Checkpoint | None" = None,
    name: str | None = None,
    child: tuple[str, str] | None = None,
) -> None:
    """Drives one run on its cluster, and tells what came out."""
    phases = Phases.of_process()
    phases.end("command")
    log, screen = _voices(as_json)
    with kept_for_json(as_json), on_cluster(job, log, phases, is_training=True) as stack:
        from orchestration.cli.panel import show_progress
        from orchestration.driver.driver import Request, drive
        from orchestration.driver.run_start import tracking_uri
        from orchestration.tracking.run_ref import RunRef

        parent = None
        if child is not None:  # of a sweep: (its run, the name of this one in it)
            run_id, trial = child
            parent = RunRef(uri=tracking_uri(job, stack), experiment_id="", run_id=run_id), trial
        request = Request(job=job, parent=parent, resumed=resumed, start_from=start_from, name=name)
        outcome = drive(
            request, stack=stack, log=log, show_progress=partial(show_progress, screen),
            phases=phases,
        )  # fmt: skip
    wall_s = time.monotonic() - began
    if as_json:
        print_json({**asdict(outcome), "wall_s": wall_s})
        return
    print_outcome(console, job, outcome, wall_s=wall_s, command=own_name())


def _voices(as_json: bool) -> "tuple[Log, Console]":
    """Who tells lines and who shows progress: beside JSON, standard error."""
    if as_json:
        return partial(print, file=sys.stderr), Console(stderr=True)
    return echo, console
