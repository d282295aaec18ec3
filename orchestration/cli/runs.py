"""The verbs for runs in MLflow: ui, runs, compare, and sync, which sends what MLflow missed."""

import contextlib
import datetime
import math
import os
import signal
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.cli.data import AsJson, Endpoint, embedded, quiet, using_store
from orchestration.cli.tables import echo, kept_for_json, print_json
from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.load import from_dict
from orchestration.job.rules import choose, without_secrets
from orchestration.run.progress import clock

if TYPE_CHECKING:
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack
    from orchestration.tracking.table import Comparison, RunRow

console = Console(highlight=False)
WIDE = 400  # columns where nobody looks: a line of a file is as long as it is
SILENT_S = 300.0  # while its driver lives, a run says something every ten seconds
MIDDLE = 110  # columns in which the beginning of a run's id stands beside the rest
ROOMY = 134  # and the whole of it
SHORT_ID = 8  # letters of that beginning; the verbs take it
COLOURS = {"FINISHED": "green", "FAILED": "red", "KILLED": "red", "RUNNING": "cyan"}

TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="URL of an MLflow server, or `local`, the embedded one. Left out: "
        "MLFLOW_TRACKING_URI, else the embedded one."
    ),
]
RUN_HELP = "A run's id, its name, or the URL of its folder in storage."


def ui(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help=RUN_HELP)] = None,
    experiment: Annotated[
        str | None, typer.Option(help="Open its table of runs instead, in rayception's columns.")
    ] = None,
    tracking_uri: TrackingUri = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open")] = True,
) -> None:
    """Open MLflow's UI on a run's charts or an experiment's table; Ctrl-C ends the embedded one."""
    if run is not None and experiment is not None:
        raise JobError(
            f"--experiment: got {experiment!r} beside RUN; one page is opened. Leave one out."
        )
    with _serving(tracking_uri, echo) as (uri, stack):
        from orchestration.tracking.table import find, find_table

        page = ""
        if run is not None:
            page = find(uri, run).page
        elif experiment is not None:
            page = find_table(uri, experiment)
        link = f"{uri.rstrip('/')}{page}"
        console.print(link, soft_wrap=True)
        if open_browser:
            webbrowser.open(link)
        if stack is not None and not stack.kept:
            console.print("Ctrl-C ends it.")
            signal.pause()


def runs(
    experiment: Annotated[str | None, typer.Option(help="Left out: all of them.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="RUNNING, SCHEDULED, FINISHED, FAILED or KILLED; may be given again."),
    ] = None,
    where: Annotated[
        str, typer.Option("--filter", help='MLflow\'s words: "metrics.`val/top1` > 90".')
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of an MLflow server, the newest first."""
    with _serving(tracking_uri, quiet) as (uri, _):
        from orchestration.tracking.table import STATUSES, search

        statuses = [one.upper() for one in status or []]
        for one in statuses:
            choose("--status", one, STATUSES)
        rows = search(uri, experiment=experiment, statuses=statuses, where=where, limit=limit)
    if as_json:
        print_json([_plain(row) for row in rows])
    elif not rows:
        console.print("no run")
    else:
        _print_wide(table_of(rows, width=console.width if console.is_terminal else WIDE))


def compare(
    called: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help=RUN_HELP)],
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Lay runs side by side: the parameters that differ, and the last metrics."""
    if len(called) < 2:
        raise JobError(f"RUN: got {len(called)}; at least two are compared. Name another one.")
    with _serving(tracking_uri, quiet) as (uri, _):
        from orchestration.tracking.table import compare as side_by_side

        found = side_by_side(uri, called)
    if as_json:
        print_json(
            {
                "runs": [_plain(row) for row in found.runs],
                "params": found.params,
                "metrics": {
                    key: [_finite(value) for value in values]
                    for key, values in found.metrics.items()
                },
            }
        )
    else:
        _print_wide(_beside(found))


@contextlib.contextmanager
def _serving(given: str | None, log: "Log") -> Iterator[tuple[str, "Stack | None"]]:
    """(URL of the server that is meant, the stack where it is the embedded one), for the block.

    The embedded one is started where it does not run, and turned off again. Raises JobError,
    ServiceError.
    """
    source = "--tracking-uri" if given is not None else "MLFLOW_TRACKING_URI"
    uri = given if given is not None else os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
    if uri != LOCAL:
        if not is_remote(uri):
            raise JobError(
                f"{source}: got {without_secrets(uri)!r}; `local`, or the http(s) URL of an MLflow "
                "server without credentials in it. Write it so, and set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD where it asks for them."
            )
        yield uri, None
        return
    with embedded(frozenset({"s3", "mlflow"}), log) as stack:
        assert stack is not None
        yield stack.mlflow_url, stack


def table_of(rows: "Sequence[RunRow]", *, width: int) -> Table:
    """width: columns of the terminal; a narrow one leaves out ids, which names stand for."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for title in ("status", "started"):
        table.add_column(title, no_wrap=True)
    for title in ("duration", "top-1", "epoch (step)", "images/s"):
        table.add_column(title, justify="right", no_wrap=True)
    if width >= MIDDLE:
        table.add_column("attempts", justify="right", no_wrap=True)
        table.add_column("run id", no_wrap=True)
    now_s = time.time()
    for row in rows:
        name = row.name if row.children is None else f"{row.name} (sweep of {row.children})"
        cells: list[Text | str] = [
            Text(name),
            _status(row),
            ago(now_s - row.started_s),
            clock(row.duration_s),
            "-" if row.top1 is None else f"{row.top1:.2f} %",
            "-" if row.epoch is None else f"{row.epoch:.4g} ({row.step:,})",
            "-" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        ]
        if width >= MIDDLE:
            cells.append("-" if row.attempts is None else str(row.attempts))
            cells.append(row.run_id if width >= ROOMY else row.run_id[:SHORT_ID])
        table.add_row(*cells)
    return table


def _status(row: "RunRow") -> Text:
    """A driver that was killed cannot say that its run has ended, but it says nothing more."""
    if row.silent_s is not None and row.silent_s > SILENT_S:
        return Text(f"silent {span(row.silent_s)}", style="red")
    return Text(row.status, style=COLOURS.get(row.status, ""))


def ago(seconds: float) -> str:
    """`12s ago`, `3h ago`."""
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """`12s`, `3h`: in the largest unit that has passed twice, so that little is lost."""
    number, unit = max(0.0, seconds), "s"
    for larger, factor in (("m", 60), ("h", 60), ("d", 24)):
        if number < 2 * factor:
            break
        number, unit = number / factor, larger
    return f"{number:.0f}{unit}"


def _beside(found: "Comparison") -> Table:
    """One table: what the runs are, what differs, what came out."""
    table = Table("")
    for row in found.runs:
        table.add_column(Text(row.name), overflow="fold")
    table.add_row("run id", *(row.run_id for row in found.runs))
    table.add_row("status", *(_status(row) for row in found.runs))
    table.add_row("duration", *(clock(row.duration_s) for row in found.runs))
    table.add_section()
    for key, texts in found.params.items():
        table.add_row(Text(key), *(Text("-" if text is None else text) for text in texts))
    table.add_section()
    for key, values in found.metrics.items():
        table.add_row(Text(key), *("-" if value is None else f"{value:.6g}" for value in values))
    return table


def _print_wide(table: Table) -> None:
    """On a terminal as wide as that; in a file or a pipe, whole."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(highlight=False, width=WIDE).print(table, crop=False)


def _plain(row: "RunRow") -> dict[str, Any]:
    """For JSON, which has no word for what is not a number."""
    values = {
        key: _finite(value) if isinstance(value, float) else value
        for key, value in asdict(row).items()
    }
    at = datetime.datetime.fromtimestamp(row.started_s, datetime.UTC)
    return {**values, "started": at.isoformat(timespec="seconds")}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def sync(
    url: Annotated[str, typer.Argument(metavar="RUN", help="URL of the run's folder in storage.")],
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Send MLflow what it did not take while it was away: points, files, the run's end."""
    from orchestration.run.record import load_record

    url = url.rstrip("/")
    with kept_for_json(as_json), using_store(endpoint_url) as store:
        from orchestration.driver.run import Run
        from orchestration.driver.run_end import sync_run
        from orchestration.driver.run_start import run_of

        record = load_record(store, url)
        job = from_dict(record.job)
        with embedded(job.uses() - {"ray"}) as stack:
            run = Run(job=job, store=store, url=url, mlflow=run_of(record, job, stack))
            sent = sync_run(run)
    if as_json:
        print_json(sent)
        return
    ended = f", and that it has {str(sent['ended']).lower()}" if sent["ended"] else ""
    echo(f"sent {sent['points']:,} points and {sent['files']} files of {record.name}{ended}")
