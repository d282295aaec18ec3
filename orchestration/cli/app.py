"""The verbs; wiring only. Heavy packages (torch, ray, mlflow) are imported by the verb that needs
them, so that `validate` and `plan` answer in milliseconds."""

import atexit
import contextlib
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from orchestration.cli import (
    checkpoints,
    data,
    models,
    render,
    run,
    runs,
    shards,
    submissions,
)
from orchestration.cli.tables import echo, own_name, print_json, print_plan
from orchestration.errors import EXPECTED_ERRORS, ServiceError, exit_code_of
from orchestration.job.load import load_job

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
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
for verb in (
    run.run,
    run.resume,
    run.fork,
    run.sweep,
    submissions.preflight,
    submissions.submit,
    submissions.status,
    submissions.logs,
    submissions.stop,
    submissions.drain,
    runs.sync,
    runs.runs,
    runs.compare,
    runs.ui,
    checkpoints.evaluate,
    checkpoints.predict,
    checkpoints.export,
    shards.pack,
    shards.index,
    data.inspect,
    data.verify,
    models.models,
    render.render,
):
    app.command()(verb)
app.command("list")(submissions.list_submissions)
console = Console(highlight=False)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["RAYCEPTION_DEBUG"] = "1"


@app.command()
def validate(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a job YAML, and nothing else."""
    job = load_job(file, overrides or [])
    if as_json:
        from orchestration.job.load import to_dict

        print_json(to_dict(job))
    else:
        console.print(f"{file}: job {job.name} is valid", soft_wrap=True)


@app.command()
def plan(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print every number that follows from a job; starts nothing."""
    from orchestration.job.plan import make_plan, stated_data

    job = load_job(file, overrides or [])
    if (data := stated_data(job)) is None:
        from orchestration.run.storage import measure_data

        data = measure_data(job)
    train_samples, val_samples, shape = data
    made = make_plan(job, train_samples=train_samples, val_samples=val_samples, shape=shape)
    if as_json:
        print_json(asdict(made))
        return
    print_plan(console, job, made)


Port = Annotated[int | None, typer.Option(min=1, max=65535, show_default="a free one")]


@stack_app.command("up")
def stack_up(s3_port: Port = None, mlflow_port: Port = None, dashboard_port: Port = None) -> None:
    """Start the stack and leave it running until `stack down`."""
    from orchestration.stack.local import up
    from orchestration.stack.state import PARTS, stack_folder

    wanted = {"s3": s3_port, "mlflow": mlflow_port, "dashboard": dashboard_port}
    ports = {name: port for name, port in wanted.items() if port is not None}
    folder = stack_folder()
    echo(f"starting the stack (data in {folder})")
    num_cpus = os.cpu_count() or 1
    up(folder, frozenset(PARTS), num_cpus=num_cpus, log=echo, keep=True, ports=ports)
    echo(f"it stays up until `{own_name()} stack down`")


@stack_app.command("status")
def stack_status(as_json: AsJson = False) -> None:
    """Say which services run and where."""
    from orchestration.stack.state import PARTS, load_stack, stack_folder

    folder = stack_folder()
    stack = load_stack(folder)
    parts = {
        part: {
            "is_up": stack is not None and stack.is_up(part),
            "url": stack.url(part) if stack is not None and stack.is_up(part) else None,
            "pid": stack.processes[part][0] if stack is not None and stack.is_up(part) else None,
        }
        for part in PARTS
    }
    if as_json:
        print_json({"folder": str(folder), "kept": bool(stack and stack.kept), "services": parts})
        return
    console.print(f"stack in {folder}", soft_wrap=True)
    for part, state in parts.items():
        words = f"up at {state['url']} (pid {state['pid']})" if state["is_up"] else "down"
        console.print(f"  {part}: {words}", soft_wrap=True)


@stack_app.command("down")
def stack_down(
    force: Annotated[bool, typer.Option(help="Also while a run uses the stack.")] = False,
) -> None:
    """Stop the stack; its data stay."""
    from orchestration.stack.local import down
    from orchestration.stack.state import stack_folder

    folder = stack_folder()
    was_up = down(folder, force=force)
    echo(f"stack in {folder} {'stopped' if was_up else 'was not running'}; its data stay there")


def fail(error: BaseException) -> NoReturn:
    """Says the error in its one line and leaves with its exit code."""
    if os.environ.get("RAYCEPTION_DEBUG"):
        traceback.print_exception(error)
    print(str(error), file=sys.stderr)  # noqa: T201 - markup in a message is not ours to render
    sys.exit(exit_code_of(error))


def main() -> None:
    """Entry point: every known error is one line on stderr."""
    try:
        _call()
    except SystemExit as end:
        # To take down a process that has torch, Ray and MLflow in it costs Python 1.6 s, in which
        # nothing happens that anybody waits for.
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1 if end.code else 0)


def _call() -> None:
    try:
        app()
    except EXPECTED_ERRORS as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno is not None and error.filename:
            fail(
                ServiceError(
                    f"{error.filename}: got {error.strerror}; this machine refused. "
                    "Check the path, its permissions and its disk."
                )
            )
        raise
