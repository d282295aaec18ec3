"""The application: every command, and the entry point, which turns errors into exit codes.

Heavy packages (torch, ray, mlflow) are imported in the commands that need them, so that `validate`
and `plan` answer in milliseconds.
"""

import atexit
import contextlib
import os
import shlex
import sys
import traceback
from dataclasses import asdict
from typing import Annotated, Any

import typer

from datasets.storage.proxy import bypass_loopback
from orchestration.cli import checkpoints, data, models, render, run, runs, shards, submissions
from orchestration.cli.data import AsJson, JobFile, Overrides, read_job
from orchestration.cli.tables import log_line, panel, plan_rows, print_result, program_name
from orchestration.errors import EXPECTED_ERRORS, ServiceError, exit_code_of
from orchestration.job.load import to_dict
from orchestration.job.plan import data_from_job, make_plan

INTERRUPTED = 130  # 128 + SIGINT, as in shells
app = typer.Typer(
    help="Trains the Inception family on a Ray cluster; the result does not depend on the cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stack_app = typer.Typer(
    help="The embedded object store, MLflow server and Ray of this machine.", no_args_is_help=True
)
app.add_typer(stack_app, name="stack")
for command in (
    run.run, run.resume, run.fork, run.sweep,
    submissions.preflight, submissions.submit, submissions.status, submissions.logs,
    submissions.stop, submissions.drain,
    runs.sync, runs.runs, runs.compare, runs.ui,
    checkpoints.evaluate, checkpoints.predict, checkpoints.export,
    shards.pack, shards.index, data.inspect, data.verify,
    models.models, render.render,
):  # fmt: skip
    app.command()(command)
app.command("list")(submissions.list_submissions)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["RAYCEPTION_DEBUG"] = "1"


@app.command()
def validate(file: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a job's YAML, and nothing else."""
    job = read_job(file, overrides)
    print_result(as_json, to_dict(job), f"{file}: job {job.name} is valid")


@app.command()
def plan(file: JobFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print every number that follows from a job; starts nothing."""
    job = read_job(file, overrides)
    sizes = data_from_job(job)
    if sizes is None:
        from orchestration.run.storage import read_split_sizes

        sizes = read_split_sizes(job)
    train_samples, val_samples, shape = sizes
    job_plan = make_plan(job, train_samples=train_samples, val_samples=val_samples, shape=shape)
    rows = plan_rows(job, job_plan)
    print_result(as_json, asdict(job_plan), panel(f"plan of {job.name}", rows))


Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="a free one")]


@stack_app.command("up")
def stack_up(s3_port: Port = None, mlflow_port: Port = None, dashboard_port: Port = None) -> None:
    """Start the stack and leave it running until `stack down`."""
    from orchestration.stack.local import up
    from orchestration.stack.state import SERVICES, stack_folder

    requested = {"s3": s3_port, "mlflow": mlflow_port, "dashboard": dashboard_port}
    ports = {name: port for name, port in requested.items() if port is not None}
    folder = stack_folder()
    num_cpus = os.cpu_count() or 1
    up(folder, frozenset(SERVICES), num_cpus=num_cpus, log=log_line, keep=True, ports=ports)
    log_line(f"it runs until `{program_name()} stack down`")


@stack_app.command("status")
def stack_status(as_json: AsJson = False) -> None:
    """Show which services run, and where."""
    from orchestration.stack.state import SERVICES, load_stack, stack_folder

    folder = stack_folder()
    stack = load_stack(folder)
    services: dict[str, dict[str, Any]] = {}
    lines = [f"stack in {folder}"]
    for part in SERVICES:
        if stack is not None and stack.is_up(part):
            url, pid = stack.url(part), stack.processes[part][0]
            services[part] = {"is_up": True, "url": url, "pid": pid}
            lines.append(f"  {part}: up at {url} (pid {pid})")
        else:
            services[part] = {"is_up": False, "url": None, "pid": None}
            lines.append(f"  {part}: down")
    is_kept = stack is not None and stack.kept
    print_result(as_json, {"folder": str(folder), "kept": is_kept, "services": services}, *lines)


@stack_app.command("env")
def stack_env() -> None:
    """Print the secrets of the stack for a shell, whose own programs then reach its services:
    eval "$(rayception stack env)"."""
    from orchestration.stack.services import ray_environment, s3_environment
    from orchestration.stack.state import load_stack, stack_folder
    from orchestration.tracking.credentials import USER

    stack = load_stack(stack_folder())
    if stack is None or not stack.is_any_up():
        raise ServiceError(
            f"{stack_folder()}: got a stack that is down; its services must run. Run "
            "`rayception stack up` first."
        )
    variables: dict[str, str] = {}
    if stack.is_up("s3"):
        variables |= {**s3_environment(stack.secrets), "AWS_ENDPOINT_URL": stack.url("s3")}
    if stack.is_up("mlflow"):
        variables |= {
            "MLFLOW_TRACKING_URI": stack.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": stack.secrets.mlflow_token,
        }
    if stack.is_up("ray"):
        variables |= ray_environment(stack.secrets)
    # What the shell has of other stores and servers would go before it, or with it.
    prefixes = tuple({f"{name.partition('_')[0]}_" for name in variables} - {"RAY_"})
    others = [name for name in os.environ if name.startswith(prefixes) and name not in variables]
    lines = [f"unset {name}" for name in sorted(others)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    print("\n".join(lines))  # noqa: T201 - for a shell


@stack_app.command("down")
def stack_down(
    force: Annotated[bool, typer.Option(help="Even if a run uses the stack.")] = False,
) -> None:
    """Stop the stack; its data stay."""
    from orchestration.stack.local import down
    from orchestration.stack.state import stack_folder

    folder = stack_folder()
    was_up = down(folder, force=force)
    log_line(f"stack in {folder} {'stopped' if was_up else 'was not running'}; its data stay there")


def main() -> None:
    """The entry point."""
    bypass_loopback()
    code = _run_app()
    # The interpreter would take 1.6 s to shut down with torch, Ray and MLflow loaded, and nothing
    # that it does then is needed.
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # the reader is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _run_app() -> int:
    """Runs the command; -> its exit code. An expected error is one line on standard error."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except EXPECTED_ERRORS as error:
        return _report(error)
    except OSError as error:
        if error.errno is None or not error.filename:
            raise
        return _report(
            ServiceError(
                f"{error.filename}: got {error.strerror}; this machine refused access. "
                "Check the path, its permissions and its disk."
            )
        )
    return 0


def _report(error: Exception) -> int:
    """Prints the error; -> its exit code."""
    if os.environ.get("RAYCEPTION_DEBUG"):
        traceback.print_exception(error)
    print(str(error), file=sys.stderr)  # noqa: T201
    return exit_code_of(error)
