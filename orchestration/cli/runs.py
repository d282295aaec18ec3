"""Commands on runs in MLflow: ui, runs, compare, and sync, which sends what MLflow missed."""

import contextlib
import datetime
import json
import os
import signal
import time
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from orchestration.cli.data import AsJson, Endpoint, RunUrl, embedded, ignore_line, using_store
from orchestration.cli.tables import WIDE, console, log_line, print_result, reserve_stdout
from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.load import from_dict
from orchestration.job.rules import check_choice, redact_url
from orchestration.run.progress import format_duration

if TYPE_CHECKING:
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack
    from orchestration.tracking.table import Comparison, RunRow

SILENT_S = 300.0  # a live driver logs something every ten seconds
SHORT_ID_WIDTH = 110  # columns of a terminal that shows the beginning of run ids
FULL_ID_WIDTH = 134  # and whole ids
SHORT_ID = 8  # characters; enough of an id for the commands
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
    with _tracking_server(tracking_uri, log_line) as (uri, stack):
        from orchestration.tracking.table import find, find_table

        page = ""
        if run is not None:
            page = find(uri, run).page
        elif experiment is not None:
            page = find_table(uri, experiment)
        link = f"{uri.rstrip('/')}{page}" if stack is None else _login_link(stack, page)
        console.print(link, soft_wrap=True)
        if open_browser:
            webbrowser.open(link if stack is None else _private_page(stack.folder, link))
        if stack is not None and not stack.kept:
            console.print("Ctrl-C ends it.")
            signal.pause()


def _login_link(stack: "Stack", page: str) -> str:
    """Logs a browser in at the embedded server and leads on to `page`; good for ten minutes."""
    from orchestration.tracking.server_app import LOGIN_PATH, make_ticket

    ticket = make_ticket(stack.secrets.mlflow_token, time.time())
    return f"{stack.url('mlflow')}{LOGIN_PATH}#{ticket}{page.removeprefix('/')}"


def _private_page(folder: Path, link: str) -> str:
    """URL of a file that only this user reads and that leads to `link`: a browser's arguments are
    seen by every user of the machine."""
    file = folder / "mlflow" / "open.html"  # this user's own folder, whoever may write beside it
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(f"<!DOCTYPE html><script>location.replace({json.dumps(link)})</script>")
    return file.as_uri()


def runs(
    experiment: Annotated[str | None, typer.Option(help="Left out: all of them.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="RUNNING, SCHEDULED, FINISHED, FAILED or KILLED; can be repeated."),
    ] = None,
    filter_string: Annotated[
        str, typer.Option("--filter", help='In MLflow\'s syntax: "metrics.`val/top1` > 90".')
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of an MLflow server, newest first."""
    with _tracking_server(tracking_uri, ignore_line) as (uri, _):
        from orchestration.tracking.table import STATUSES, search

        statuses = [name.upper() for name in status or []]
        for name in statuses:
            check_choice("--status", name, STATUSES)
        rows = search(
            uri, experiment=experiment, statuses=statuses, filter_string=filter_string, limit=limit
        )
    width = console.width if console.is_terminal else WIDE
    print_result(
        as_json,
        [_json_values(row) for row in rows],
        runs_table(rows, width=width) if rows else "no run",
    )


def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help=RUN_HELP)],
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: the parameters that differ, the last metrics, and whether they
    computed the same bits."""
    if len(names) < 2:
        raise JobError(f"RUN: got {len(names)}; at least two are compared. Name another one.")
    with _tracking_server(tracking_uri, ignore_line) as (uri, _):
        from orchestration.report.same_bits import RESULT_METRICS, same_bits
        from orchestration.run.checkpoint import DIGEST_TAG
        from orchestration.tracking.run_ref import RunRef
        from orchestration.tracking.runs import get_tag, metric_histories
        from orchestration.tracking.table import compare as compare_runs

        comparison = compare_runs(uri, names)
        refs = [RunRef(uri=uri, experiment_id="", run_id=row.run_id) for row in comparison.runs]
        bits = same_bits(
            [metric_histories(run, RESULT_METRICS) for run in refs],
            [get_tag(run, DIGEST_TAG) for run in refs],
        )
    rows = [_json_values(row) for row in comparison.runs]
    values = {
        "runs": rows,
        "params": comparison.params,
        "metrics": comparison.metrics,
        "bits": {**asdict(bits), "message": str(bits)},
    }
    print_result(as_json, values, _comparison_table(comparison), str(bits))


def sync(url: RunUrl, endpoint_url: Endpoint = None, as_json: AsJson = False) -> None:
    """Send MLflow what it missed while it was unreachable: points, files, the run's end."""
    from orchestration.run.record import load_record

    url = url.rstrip("/")
    with reserve_stdout(as_json), using_store(endpoint_url) as store:
        from orchestration.driver.run import Run, run_ref_of
        from orchestration.driver.run_end import sync_run

        record = load_record(store, url)
        job = from_dict(record.job)
        with embedded(job.local_services() - {"ray"}) as stack:
            run = Run(job=job, store=store, url=url, mlflow=run_ref_of(record, job, stack))
            sent = sync_run(run)
    end = f"; it is {sent['ended']} now" if sent["ended"] else ""
    print_result(
        as_json,
        sent,
        f"sent {sent['points']:,} points and {sent['files']} files of {record.name}{end}",
    )


@contextlib.contextmanager
def _tracking_server(uri: str | None, log: "Log") -> Iterator[tuple[str, "Stack | None"]]:
    """(URL of the server, the stack if it is the embedded one), for the block: an embedded server
    that this starts is stopped after it. Raises JobError, ServiceError."""
    from orchestration.tracking.credentials import find_embedded

    source = "--tracking-uri" if uri is not None else "MLFLOW_TRACKING_URI"
    if uri is None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
    if uri != LOCAL:
        if not is_remote(uri):
            raise JobError(
                f"{source}: got {redact_url(uri)!r}; `local`, or the http(s) URL of an MLflow "
                "server without credentials in it. Write it so, and set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD if it asks for them."
            )
        yield uri, find_embedded(uri)
        return
    with embedded(frozenset({"s3", "mlflow"}), log) as stack:
        assert stack is not None
        yield stack.url("mlflow"), stack


def runs_table(rows: "Sequence[RunRow]", *, width: int) -> Table:
    """width: columns of the terminal; a narrow one leaves out ids, as names do for the commands."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    for title in ("status", "started"):
        table.add_column(title, no_wrap=True)
    for title in ("duration", "top-1", "epoch (step)", "images/s"):
        table.add_column(title, justify="right", no_wrap=True)
    if width >= SHORT_ID_WIDTH:
        table.add_column("attempts", justify="right", no_wrap=True)
        table.add_column("run id", no_wrap=True)
    now_s = time.time()
    for row in rows:
        name = row.name if row.children is None else f"{row.name} (sweep of {row.children})"
        cells: list[Text | str] = [
            name,
            _status(row),
            f"{rough_duration(now_s - row.started_s)} ago",
            format_duration(row.duration_s),
            "-" if row.top1 is None else f"{row.top1:.2f} %",
            "-" if row.epoch is None else f"{row.epoch:.4g} ({row.step:,})",
            "-" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
        ]
        if width >= SHORT_ID_WIDTH:
            cells.append("-" if row.attempts is None else str(row.attempts))
            cells.append(row.run_id if width >= FULL_ID_WIDTH else row.run_id[:SHORT_ID])
        table.add_row(*cells)
    return table


def _status(row: "RunRow") -> Text:
    """Also shows a run whose driver was killed: it could not report the end, but logs nothing."""
    if row.silent_s is not None and row.silent_s > SILENT_S:
        return Text(f"silent {rough_duration(row.silent_s)}", style="red")
    return Text(row.status, style=COLOURS.get(row.status, ""))


def rough_duration(seconds: float) -> str:
    """`12s`, `3h`: in the largest unit of which at least two have passed."""
    number, unit = max(0.0, seconds), "s"
    for larger, factor in (("m", 60), ("h", 60), ("d", 24)):
        if number < 2 * factor:
            break
        number, unit = number / factor, larger
    return f"{number:.0f}{unit}"


def _comparison_table(comparison: "Comparison") -> Table:
    """A column for each run: its identity, the parameters that differ, its metrics."""
    table = Table("")
    for row in comparison.runs:
        table.add_column(row.name, overflow="fold")
    table.add_row("run id", *(row.run_id for row in comparison.runs))
    table.add_row("status", *(_status(row) for row in comparison.runs))
    table.add_row("duration", *(format_duration(row.duration_s) for row in comparison.runs))
    table.add_section()
    for key, texts in comparison.params.items():
        table.add_row(key, *("-" if text is None else text for text in texts))
    table.add_section()
    for key, values in comparison.metrics.items():
        table.add_row(key, *("-" if value is None else f"{value:.6g}" for value in values))
    return table


def _json_values(row: "RunRow") -> dict[str, Any]:
    started = datetime.datetime.fromtimestamp(row.started_s, datetime.UTC)
    return {**asdict(row), "started": started.isoformat(timespec="seconds")}
