"""The verbs about jobs on a cluster elsewhere: submit, status, logs, stop, list."""

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.cli.data import AsJson, quiet
from orchestration.cli.tables import echo, kept_for_json, print_json, print_panel
from orchestration.cluster.versions import ON_CLUSTER, VERSIONS
from orchestration.driver.sweep import Trial
from orchestration.errors import JobError, exit_code_of
from orchestration.job.cluster import is_remote
from orchestration.job.load import load_job

if TYPE_CHECKING:
    from orchestration.cluster.jobs_api import JobsClient

console = Console(highlight=False)
DRAIN_LIMIT_S = 60.0
PREFLIGHT_LIMIT_S = 60.0
Address = Annotated[
    str | None,
    typer.Option(
        help="URL of the cluster's dashboard, or `local`, the running stack's. Left out: "
        "RAY_API_SERVER_ADDRESS."
    ),
]
Name = Annotated[str, typer.Argument(metavar="SUBMISSION", help="The id that submit gave.")]


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
    name: Annotated[
        str | None, typer.Option(help="The run's name; one of that name that has begun goes on.")
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Fail where there is no room now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a job to the cluster at its cluster.address; returns at once, unless told to follow."""
    job = load_job(file, [*(overrides or []), *(["cluster.wait_s=0"] if no_wait else [])])
    if not is_remote(job.cluster.address):
        raise JobError(
            f"cluster.address: got {job.cluster.address}; a job is submitted to the URL of a "
            "cluster's dashboard, such as http://head:8265. Write it so, or `rayception run` here."
        )
    cluster = _cluster(job.cluster.address)
    submission = cluster.submit(job, name=name)
    if as_json and not follow:
        print_json({"submission": submission, "address": cluster.address})
        return
    echo(f"submitted {submission} to {cluster.address}")
    if follow:
        _follow(cluster, submission)


def send_on(
    verb: str, url: str, overrides: list[str], endpoint_url: str | None, address: str, as_json: bool
) -> None:
    """Has a cluster resume or fork a run: what it needs lies in the run's storage."""
    cluster = _cluster(address)
    store = ["--endpoint-url", endpoint_url] if endpoint_url is not None else []
    name = re.sub(r"[^a-z0-9-]+", "-", url.rsplit("/", 1)[1].lower()).strip("-") or verb
    submission = cluster.send((verb, url, *overrides, ON_CLUSTER, *store), name=name)
    if as_json:
        print_json({"submission": submission, "address": cluster.address})
    else:
        echo(f"submitted {submission} to {cluster.address}")


def send_sweep(
    trials: list[Trial],
    files: list[Path],
    overrides: list[str],
    grid: list[str],
    seeds: int,
    limit: int,
    as_json: bool,
) -> None:
    """Has a cluster drive a sweep: the jobs travel, and are spread over grid and seeds there."""
    from orchestration.cluster.working_dir import JOB_FILE

    job = trials[0].job
    cluster = _cluster(job.cluster.address)
    jobs = {f"{number}-{JOB_FILE}": load_job(file, overrides) for number, file in enumerate(files)}
    axes = [word for axis in grid for word in ("--grid", axis)]
    submission = cluster.send(
        ("sweep", *jobs, ON_CLUSTER, *axes, "--seeds", str(seeds), "--limit", str(limit)),
        name=f"{job.name}-sweep",
        jobs=jobs,
        environment=job.cluster.environment,
    )
    if as_json:
        print_json({"submission": submission, "address": cluster.address})
    else:
        echo(f"submitted {submission} to {cluster.address}: {len(trials)} runs, {limit} at once")


def preflight(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a job's cluster, before a GPU is taken, whether the job could run there.

    GPU types and room, data and secrets on every node, storage, MLflow, versions. Exit code 3 (or
    2) where it could not.
    """
    from orchestration.cluster.connect import on_cluster

    job = load_job(file, overrides or [])
    if is_remote(job.cluster.address):
        cluster = _cluster(job.cluster.address)
        from orchestration.cluster.working_dir import JOB_FILE

        asked = ("preflight", JOB_FILE, ON_CLUSTER)
        said = cluster.ask(asked, job=job, limit_s=PREFLIGHT_LIMIT_S)
    else:
        with kept_for_json(as_json), on_cluster(job, quiet) as stack:
            from datasets.storage.store import Store
            from orchestration.cluster.preflight import look_before
            from orchestration.driver.run_start import tracking_uri
            from orchestration.run.storage import build_store_config

            config = build_store_config(job, stack)
            checks, notes = look_before(job, Store(config), config, tracking_uri(job, stack))
        said = {
            "checks": [
                {
                    "name": one.name,
                    "said": one.said,
                    "exit_code": 0 if one.problem is None else exit_code_of(one.problem),
                }
                for one in checks
            ],
            "notes": notes,
        }
    if as_json:
        print_json(said)
        if job.cluster.address == "auto" and os.environ.get(VERSIONS):
            return  # the laptop that asked reads the answer, and ends as it says
    else:
        for one in said["checks"]:
            colour, mark = ("green", "ok") if one["exit_code"] == 0 else ("red", "NO")
            console.print(Text(f"{mark} ", style=colour), Text(f"{one['name']}: {one['said']}"))
        for note in said["notes"]:
            console.print(Text(f"note: {note}"))
    wrong = [one["exit_code"] for one in said["checks"] if one["exit_code"]]
    if wrong:
        raise typer.Exit(wrong[0])


def status(submission: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a submission fares."""
    from orchestration.cluster.jobs_api import describe_submission

    found = _cluster(address).find(submission)
    if as_json:
        print_json(asdict(found))
        return
    rows = {key: str(value) for key, value in describe_submission(found).items() if value}
    print_panel(console, rows.pop("submission"), rows)


def logs(
    submission: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="What this rank's last worker process printed.")
    ] = None,
    address: Address = None,
) -> None:
    """Print what a submission's driver printed, or one of its ranks."""
    cluster = _cluster(address)
    if rank is not None:
        text = cluster.rank_logs(submission, rank)
        console.print(text, markup=False, soft_wrap=True, end="")
        return
    if follow:
        _follow(cluster, submission)
        return
    console.print(cluster.logs(submission), markup=False, soft_wrap=True, end="")


def stop(submission: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a submission, and wait until it has ended."""
    found = _cluster(address).stop(submission)
    if as_json:
        print_json(asdict(found))
    else:
        echo(f"{submission} {found.status}")


def drain(
    node: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="Address, host name or beginning of the id; `here`: this machine."
        ),
    ],
    notice: Annotated[float, typer.Option(min=0, help="Seconds until it is taken away.")] = 60.0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until no rank is left; on the node itself.")
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Announce that a node will be taken away: runs on it save, leave and go on elsewhere."""
    if address == "auto":
        from orchestration.cluster.connect import joined
        from orchestration.cluster.drain import drain as drain_node
        from orchestration.cluster.drain import wait_until_left

        with joined("auto"):
            said = asdict(drain_node(node, notice))
        if wait and not wait_until_left(notice):
            echo("a rank is still there; it ends with the node")
    else:
        asked = ("drain", node, "--notice", str(notice), "--address", "auto")
        said = _cluster(address).ask(asked, limit_s=DRAIN_LIMIT_S)
    if as_json:
        print_json(said)
    else:
        echo(f"node {said['address']} ({said['node'][:8]}) drains; it ends in {notice:.0f} s")


def list_submissions(address: Address = None, as_json: AsJson = False) -> None:
    """List the submissions of a cluster, the newest first."""
    from orchestration.cluster.jobs_api import describe_submission

    found = _cluster(address).jobs()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    table = Table("submission", "job", "status", "for", "said")
    for one in found:
        table.add_row(*(str(value) for value in describe_submission(one).values()))
    console.print(table)


def _follow(cluster: "JobsClient", submission: str) -> None:
    """Ends as the submission does, with its exit code."""
    from orchestration.cli.panel import Panel

    with Panel(console, submission) as panel:
        for line in cluster.follow(submission):
            panel.show(line)
    cluster.check_end(submission)


def _cluster(address: str | None) -> "JobsClient":
    """The cluster of an --address. Its token, if it is the stack's, goes to the environment first:
    Ray reads it when it is imported."""
    from orchestration.stack.services import ray_environment
    from orchestration.stack.state import load_stack, stack_folder

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    stack = load_stack(stack_folder())
    if stack is not None and stack.is_up("ray") and address in (None, "local", stack.url("ray")):
        address = stack.url("ray")
        os.environ.update(ray_environment(stack.secrets))
    if address is None or not is_remote(address):
        raise JobError(
            f"--address: got {address or 'nothing'}; the URL of a cluster's dashboard, such as "
            "http://head:8265. Write it, or set RAY_API_SERVER_ADDRESS."
        )
    from orchestration.cluster.jobs_api import JobsClient

    return JobsClient(address)
