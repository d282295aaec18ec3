"""The verbs about jobs on a cluster elsewhere: submit, status, logs, stop, list."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestration.data_verbs import AsJson
from orchestration.errors import JobError, TrainingError
from orchestration.job_places import is_remote
from orchestration.load import load_job
from orchestration.tables import print_json, print_panel, say

if TYPE_CHECKING:
    from orchestration.submit import Cluster

console = Console(highlight=False)
DRAIN_LIMIT_S = 60.0
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
    as_json: AsJson = False,
) -> None:
    """Send a job to the cluster at its cluster.address; returns at once, unless told to follow."""
    job = load_job(file, overrides or [])
    if not is_remote(job.cluster.address):
        raise JobError(
            f"cluster.address: got {job.cluster.address}; a job is submitted to the URL of a "
            "cluster's dashboard, such as http://head:8265. Write it so, or `rayception run` here."
        )
    cluster = _cluster(job.cluster.address)
    submission = cluster.submit(job)
    if as_json and not follow:
        print_json({"submission": submission, "address": cluster.address})
        return
    say(f"submitted {submission} to {cluster.address}")
    if follow:
        _follow(cluster, submission)


def status(submission: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a submission fares."""
    from orchestration.submit import describe

    found = _cluster(address).find(submission)
    if as_json:
        print_json(asdict(found))
        return
    rows = {key: str(value) for key, value in describe(found).items() if value}
    print_panel(console, rows.pop("submission"), rows)


def logs(
    submission: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    address: Address = None,
) -> None:
    """Print what a submission's driver printed."""
    cluster = _cluster(address)
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
        say(f"{submission} {found.status}")


def drain(
    node: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="Address, host name or beginning of the id; `here`: this machine."
        ),
    ],
    notice: Annotated[float, typer.Option(min=0, help="Seconds until it is taken away.")] = 60.0,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Announce that a node will be taken away: runs on it save, leave and go on elsewhere."""
    if address == "auto":
        from orchestration.drain import drain as drain_node
        from orchestration.driver import joined

        with joined("auto"):
            said = asdict(drain_node(node, notice))
    else:
        asked = ("drain", node, "--notice", str(notice), "--address", "auto")
        said = _cluster(address).ask(asked, limit_s=DRAIN_LIMIT_S)
    if as_json:
        print_json(said)
    else:
        say(f"node {said['address']} ({said['node'][:8]}) drains; it ends in {notice:.0f} s")


def list_submissions(address: Address = None, as_json: AsJson = False) -> None:
    """List the submissions of a cluster, the newest first."""
    from orchestration.submit import describe

    found = _cluster(address).jobs()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    table = Table("submission", "job", "status", "for", "said")
    for one in found:
        table.add_row(*(str(value) for value in describe(one).values()))
    console.print(table)


def _follow(cluster: "Cluster", submission: str) -> None:
    """Exit code 4 where it did not end well."""
    for line in cluster.follow(submission):
        console.print(line, markup=False, soft_wrap=True)
    found = cluster.find(submission)
    if found.status != "SUCCEEDED":
        raise TrainingError(
            f"{submission}: got {found.status} ({found.message or 'no word'}); see "
            f"`rayception logs {submission}`. Mend what it says, and submit it again."
        )


def _cluster(address: str | None) -> "Cluster":
    """The cluster of an --address. Its token, if it is the stack's, goes to the environment first:
    Ray reads it when it is imported."""
    from orchestration.services import ray_environment
    from orchestration.stack import load_stack, stack_folder

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
    from orchestration.submit import Cluster

    return Cluster(address)
