"""Commands that read a split (verify, inspect); arguments and connections that commands share."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestration.cli.tables import make_console, panel, print_result
from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.load import load_job
from orchestration.job.rules import redact_url

if TYPE_CHECKING:
    from datasets.shards.manifest import Manifest
    from datasets.storage.store import Store
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack

JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="The job's YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIELD=VALUE]...", help="Overrides, such as optim.lr=0.1."),
]
RunName = Annotated[
    str | None, typer.Option(help="The run's name; an existing run of that name is resumed.")
]
RunUrl = Annotated[str, typer.Argument(metavar="RUN", help="URL of the run's folder in storage.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Fail at once if there is no free capacity.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Endpoint = Annotated[
    str | None,
    typer.Option(help="S3 endpoint: a URL, or `local`, the running stack's. Left out: AWS."),
]
SplitUrl = Annotated[
    str, typer.Argument(metavar="URL", help="The split: a prefix, or the pattern that was indexed.")
]
Threads = Annotated[int, typer.Option(min=1, help="Shards processed at once.")]
DEFAULT_THREADS = min(8, os.cpu_count() or 1)
SCHEMES = ("s3://", "file:///", "http://", "https://")


def verify(
    url: SplitUrl, threads: Threads = DEFAULT_THREADS, endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read a whole split and report each damaged shard and sample; exit code 2 if there is one."""
    from datasets.packing import audit

    store, manifest = _open_split(url, endpoint_url)
    with progress_bar() as bar:
        task = bar.add_task("shards read", total=len(manifest.shards))
        damages = audit.verify(store, manifest, threads=threads, on_shard=lambda: bar.advance(task))
    print_result(
        as_json,
        {"num_samples": manifest.num_samples, "damages": [asdict(damage) for damage in damages]},
        *(damage.message for damage in damages),
        f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards: "
        f"{len(damages) or 'none'} damaged",
    )
    if damages:
        raise typer.Exit(JobError.exit_code)


def inspect(
    url: SplitUrl,
    sheet: Annotated[Path, typer.Option(help="Where to write the contact sheet.")] = Path(
        "contact-sheet.png"
    ),
    look_at: Annotated[int, typer.Option(min=1, help="Number of samples to decode.")] = 256,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Summarize a split and draw a contact sheet of it."""
    from datasets.packing import audit

    store, manifest = _open_split(url, endpoint_url)
    contents = audit.inspect(store, manifest, look_at=look_at)
    try:
        contents.sheet.save(sheet)
    except (OSError, ValueError) as error:
        raise JobError(
            f"--sheet: got {str(sheet)!r}; a path that ends in .png in a folder that can be "
            f"written ({error}). Name another one."
        ) from error
    values = {key: getattr(contents, key) for key in contents.__dataclass_fields__}
    largest_classes = sorted(contents.by_class.items(), key=lambda item: -item[1])[:8]
    height, width = contents.median_size
    largest_height, largest_width = contents.largest_size
    rows = {
        "samples": f"{contents.num_samples:,}",
        "shards": f"{contents.num_shards:,}, {contents.size_bytes / 1e6:,.1f} MB",
        "classes": f"{len(contents.by_class):,} among {contents.looked_at:,} samples: "
        + ", ".join(f"{name} {count}" for name, count in largest_classes),
        "images": f"median {width} x {height}, largest {largest_width} x {largest_height}",
        "contact sheet": str(sheet),
    }
    print_result(as_json, {**values, "sheet": str(sheet)}, panel(url, rows))


def _open_split(url: str, endpoint_url: str | None) -> "tuple[Store, Manifest]":
    from datasets.shards.manifest import load_manifest

    store = open_store(endpoint_url)
    return store, load_manifest(store, checked_url(url))


def read_job(file: Path, overrides: list[str] | None, *, no_wait: bool = False) -> Job:
    """The job of a command. Raises JobError."""
    return load_job(file, [*(overrides or []), *(["cluster.wait_s=0"] if no_wait else [])])


def open_store(endpoint_url: str | None) -> "Store":
    """The store at an --endpoint-url; credentials come from the environment."""
    from datasets.storage.store import Store, StoreConfig
    from orchestration.stack.services import REGION, use_embedded_store
    from orchestration.stack.state import load_stack, stack_folder

    if endpoint_url != LOCAL:
        return Store(StoreConfig(endpoint_url=endpoint_url))
    stack = load_stack(stack_folder())
    if stack is None or not stack.is_up("s3"):
        raise JobError(
            "--endpoint-url: got local, but the stack is down; its object store must run. "
            "Run `rayception stack up` first."
        )
    use_embedded_store(stack.secrets)
    return Store(StoreConfig(endpoint_url=stack.url("s3"), region=REGION, addressing="path"))


@contextlib.contextmanager
def using_store(endpoint_url: str | None) -> Iterator["Store"]:
    """The store at an --endpoint-url; the embedded one runs for the block."""
    with embedded(frozenset({"s3"} if endpoint_url == LOCAL else ())):
        yield open_store(endpoint_url)


def ignore_line(line: str) -> None:
    """A log that drops its lines: those of the stack's start, which the person did not ask for."""


@contextlib.contextmanager
def embedded(services: frozenset[str], log: "Log" = ignore_line) -> Iterator["Stack | None"]:
    """The embedded stack with these services (without Ray), running for the block: what this starts
    is stopped after it. None if no service is asked for. Raises ServiceError."""
    if not services:
        yield None
        return
    from orchestration.stack.local import running_stack
    from orchestration.stack.state import stack_folder

    with running_stack(stack_folder(), services, num_cpus=1, log=log) as stack:
        yield stack


def checked_url(url: str) -> str:
    """The URL of shards without a trailing slash. Raises JobError if it is none."""
    if not url.startswith(SCHEMES) or len(url.split("/")) < 4:
        raise JobError(
            f"URL: got {redact_url(url)!r}; a prefix or a pattern of shards: "
            "s3://BUCKET/PATH, file:///PATH or https://HOST/PATH. Use one of these forms."
        )
    return url.rstrip("/")


def progress_bar() -> Progress:
    """On standard error, if that is a terminal."""
    screen = make_console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
    )
