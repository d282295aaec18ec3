"""Commands on jobs of a remote cluster: submit, status, logs, stop, list, drain, preflight.

What imports Ray is imported after _jobs_client, which may set the token that Ray reads then.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from orchestration.cli.data import (
    AsJson,
    JobFile,
    NoWait,
    Overrides,
    RunName,
    ignore_line,
    read_job,
)
from orchestration.cli.panel import show_log
from orchestration.cli.tables import console, log_line, panel, print_result, reserve_stdout
from orchestration.cluster.connect import connect, open_cluster
from orchestration.cluster.versions import ON_CLUSTER, VERSIONS_VARIABLE
from orchestration.errors import JobError, exit_code_of
from orchestration.job.cluster import LOCAL, is_remote
from orchestration.job.job import Job

if TYPE_CHECKING:
    from orchestration.cluster.jobs_api import JobsClient

QUERY_LIMIT_S = 60.0
Address = Annotated[
    str | None,
    typer.Option(
        help="URL of the cluster's dashboard, or `local`, the running stack's. Left out: "
        "RAY_API_SERVER_ADDRESS."
    ),
]
SubmissionId = Annotated[
    str, typer.Argument(metavar="SUBMISSION", help="The id that submit printed.")
]


def submit(
    file: JobFile,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it to its end.")] = False,
    name: RunName = None,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job to the cluster at its cluster.address; returns at once, unless --follow."""
    job = read_job(file, overrides, no_wait=no_wait)
    if not is_remote(job.cluster.address):
        raise JobError(
            f"cluster.address: got {job.cluster.address}; a job is submitted to the URL of a "
            "cluster's dashboard, such as http://head:8265. Write it so, or `rayception run` here."
        )
    client = _jobs_client(job.cluster.address)
    submission = client.submit(job, name=name)
    _print_submitted(client, submission, as_json and not follow)
    if follow:
        _follow(client, submission)


def submit_from_run(
    arguments: Sequence[str], endpoint_url: str | None, address: str, as_json: bool
) -> None:
    """Submits `resume` or `fork` with a URL and overrides: the job is in the run's storage."""
    command, url, *_ = arguments
    endpoint = ["--endpoint-url", endpoint_url] if endpoint_url is not None else []
    name = re.sub(r"[^a-z0-9-]+", "-", url.rpartition("/")[2].lower()).strip("-") or command
    client = _jobs_client(address)
    submission = client.submit_command((*arguments, ON_CLUSTER, *endpoint), name=name)
    _print_submitted(client, submission, as_json)


def submit_sweep(jobs: Sequence[Job], options: Sequence[str], size: str, as_json: bool) -> None:
    """Submits a sweep, which applies grid and seeds there. options: those of the command. size: its
    runs, as text."""
    cluster = jobs[0].cluster
    client = _jobs_client(cluster.address)
    from orchestration.cluster.working_dir import JOB_FILE

    jobs_by_file = {f"{number}-{JOB_FILE}": job for number, job in enumerate(jobs)}
    submission = client.submit_command(
        ("sweep", *jobs_by_file, ON_CLUSTER, *options),
        name=f"{jobs[0].name}-sweep",
        jobs=jobs_by_file,
        environment=cluster.environment,
    )
    _print_submitted(client, submission, as_json, f": {size}")


def preflight(file: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Ask a job's cluster, before it takes a GPU, whether the job could run there.

    GPU types and capacity, data and secrets on every node, storage, MLflow, versions. Exit code 3
    (or 2) if it could not.
    """
    job = read_job(file, overrides)
    if is_remote(job.cluster.address):
        client = _jobs_client(job.cluster.address)
        from orchestration.cluster.working_dir import JOB_FILE

        query = ("preflight", JOB_FILE, ON_CLUSTER)
        report = client.query(query, job=job, limit_s=QUERY_LIMIT_S)
    else:
        module = "orchestration.cluster.preflight"
        with reserve_stdout(as_json), open_cluster(job, ignore_line, module=module) as stack:
            from datasets.storage.store import Store
            from orchestration.cluster.preflight import run_preflight
            from orchestration.driver.run import tracking_uri
            from orchestration.run.storage import build_store_config

            config = build_store_config(job, stack)
            checks, notes = run_preflight(job, Store(config), config, tracking_uri(job, stack))
        entries = [
            {
                "name": check.name,
                "said": check.message,
                "exit_code": 0 if check.problem is None else exit_code_of(check.problem),
            }
            for check in checks
        ]
        report = {"checks": entries, "notes": notes}
    lines = [
        Text.assemble(
            ("NO", "red") if check["exit_code"] else ("ok", "green"),
            f"  {check['name']}: {check['said']}",
        )
        for check in report["checks"]
    ]
    print_result(as_json, report, *lines, *(f"note: {note}" for note in report["notes"]))
    if as_json and job.cluster.address == "auto" and os.environ.get(VERSIONS_VARIABLE):
        return  # a query: the machine that asked exits as the report says
    for check in report["checks"]:
        if check["exit_code"]:
            raise typer.Exit(check["exit_code"])


def status(submission: SubmissionId, address: Address = None, as_json: AsJson = False) -> None:
    """Show the state of a submission."""
    state = _jobs_client(address).find(submission)
    from orchestration.cluster.jobs_api import describe_submission

    rows = {key: str(value) for key, value in describe_submission(state).items() if value}
    print_result(as_json, asdict(state), panel(rows.pop("submission"), rows))


def logs(
    submission: SubmissionId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    rank: Annotated[
        int | None, typer.Option(min=0, help="The output of this rank's last worker process.")
    ] = None,
    address: Address = None,
) -> None:
    """Print the output of a submission's driver, or of one of its ranks."""
    client = _jobs_client(address)
    if rank is None and follow:
        _follow(client, submission)
        return
    text = client.logs(submission) if rank is None else client.rank_logs(submission, rank)
    console.print(text, soft_wrap=True, end="")


def stop(submission: SubmissionId, address: Address = None, as_json: AsJson = False) -> None:
    """Stop a submission, and wait until it has ended."""
    state = _jobs_client(address).stop(submission)
    print_result(as_json, asdict(state), f"{submission} {state.status}")


def drain(
    node: Annotated[
        str,
        typer.Argument(
            metavar="NODE", help="Address, host name or beginning of the id; `here`: this machine."
        ),
    ],
    notice: Annotated[float, typer.Option(min=0, help="Seconds until the node ends.")] = 60.0,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until no rank is left; on the node itself.")
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Announce that a node will end: runs on it checkpoint, leave it and continue elsewhere."""
    if address == "auto":
        from orchestration.cluster.drain import drain as drain_node
        from orchestration.cluster.drain import wait_until_idle

        with connect("auto"):
            drained = drain_node(node, notice)
        if wait and not wait_until_idle(notice):
            log_line("a rank is still running; it ends with the node")
    else:
        query = ("drain", node, "--notice", str(notice), "--address", "auto")
        drained = _jobs_client(address).query(query, limit_s=QUERY_LIMIT_S)
    node_id = drained["node"][:8]
    print_result(
        as_json,
        drained,
        f"node {drained['address']} ({node_id}) is draining; it ends in {notice:.0f} s",
    )


def list_submissions(address: Address = None, as_json: AsJson = False) -> None:
    """List the submissions of a cluster, newest first."""
    submissions = _jobs_client(address).submissions()
    from orchestration.cluster.jobs_api import describe_submission

    table = Table("submission", "job", "status", "for", "message")
    for submission in submissions:
        table.add_row(*(str(value) for value in describe_submission(submission).values()))
    print_result(as_json, [asdict(submission) for submission in submissions], table)


def _print_submitted(
    client: "JobsClient", submission: str, as_json: bool, details: str = ""
) -> None:
    print_result(
        as_json,
        {"submission": submission, "address": client.address},
        f"submitted {submission} to {client.address}{details}",
    )


def _follow(client: "JobsClient", submission: str) -> None:
    """Shows a submission's log to its end. Raises an error with its exit code if it fails."""
    show_log(console, submission, client.follow(submission))


def _jobs_client(address: str | None) -> "JobsClient":
    """A client for an --address. If that is the stack's, its token is put into the environment
    first: Ray reads it when it is imported."""
    from orchestration.stack.services import ray_environment
    from orchestration.stack.state import load_stack, stack_folder

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    stack = load_stack(stack_folder())
    if stack is not None and stack.is_up("ray") and address in (None, LOCAL, stack.url("ray")):
        address = stack.url("ray")
        os.environ.update(ray_environment(stack.secrets))
    if address is None or not is_remote(address):
        raise JobError(
            f"--address: got {address or 'nothing'}; the URL of a cluster's dashboard, such as "
            "http://head:8265. Write it, or set RAY_API_SERVER_ADDRESS."
        )
    from orchestration.cluster.jobs_api import JobsClient

    return JobsClient(address)
