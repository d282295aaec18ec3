"""The verbs that look at a split: verify, inspect; and what all verbs about data share."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestration.cli.tables import print_json, print_panel
from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL
from orchestration.job.rules import without_secrets

if TYPE_CHECKING:
    from datasets.storage.store import Store
    from orchestration.stack.local import Log
    from orchestration.stack.state import Stack

console = Console(highlight=False)

Endpoint = Annotated[
    str | None,
    typer.Option(help="S3 endpoint: a URL, or `local`, the running stack's. Left out: AWS."),
]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The split: a prefix, or the pattern that was indexed."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Threads = Annotated[int, typer.Option(min=1, help="Shards worked at once.")]
SCHEMES = ("s3://", "file:///", "http://", "https://")
DEFAULT_THREADS = min(8, os.cpu_count() or 1)


def verify(
    url: Url, threads: Threads = DEFAULT_THREADS, endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read everything and report each damaged shard and sample; exit code 2 if there is one."""
    from datasets.packing import audit
    from datasets.shards.manifest import load_manifest

    store = open_store(endpoint_url)
    manifest = load_manifest(store, checked_url(url))
    with progress_bar() as bar:
        task = bar.add_task("shards read", total=len(manifest.shards))
        damages = audit.verify(store, manifest, threads=threads, on_shard=lambda: bar.advance(task))
    if as_json:
        print_json(
            {"num_samples": manifest.num_samples, "damages": [asdict(one) for one in damages]}
        )
    else:
        for damage in damages:
            console.print(damage.message, soft_wrap=True, markup=False)
        console.print(
            f"{manifest.num_samples:,} samples in {len(manifest.shards):,} shards: "
            + (f"{len(damages)} damaged" if damages else "all whole")
        )
    if damages:
        raise typer.Exit(JobError.exit_code)


def inspect(
    url: Url,
    sheet: Annotated[Path, typer.Option(help="Where to write the contact sheet.")] = Path(
        "contact-sheet.png"
    ),
    look_at: Annotated[int, typer.Option(min=1, help="Samples to look at.")] = 256,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Say what a split holds, and draw a contact sheet of it."""
    from datasets.packing import audit
    from datasets.shards.manifest import load_manifest

    store = open_store(endpoint_url)
    contents = audit.inspect(store, load_manifest(store, checked_url(url)), look_at=look_at)
    try:
        contents.sheet.save(sheet)
    except (OSError, ValueError) as error:
        raise JobError(
            f"--sheet: got {str(sheet)!r}; a path that ends in .png in a folder that can be "
            f"written ({error}). Name another one."
        ) from error
    if as_json:
        values = {
            key: getattr(contents, key) for key in contents.__dataclass_fields__ if key != "sheet"
        }
        print_json({**values, "sheet": str(sheet)})
        return
    most = sorted(contents.by_class.items(), key=lambda item: -item[1])[:8]
    height, width = contents.median_size
    print_panel(
        console,
        url,
        {
            "samples": f"{contents.num_samples:,}",
            "shards": f"{contents.num_shards:,}, {contents.size_bytes / 1e6:,.1f} MB",
            "classes": f"{len(contents.by_class):,} among {contents.looked_at:,} samples: "
            + ", ".join(f"{name} {count}" for name, count in most),
            "images": f"median {width} x {height}, largest {contents.largest_size[1]} x "
            f"{contents.largest_size[0]}",
            "contact sheet": str(sheet),
        },
    )


def open_store(endpoint_url: str | None) -> "Store":
    """The store of an --endpoint-url; credentials come from the environment."""
    from datasets.storage.store import Store, StoreConfig
    from orchestration.stack.services import REGION, s3_environment
    from orchestration.stack.state import load_stack, stack_folder

    if endpoint_url != "local":
        return Store(StoreConfig(endpoint_url=endpoint_url))
    stack = load_stack(stack_folder())
    if stack is None or not stack.is_up("s3"):
        raise JobError(
            "--endpoint-url: got local, but the stack is down; its store must run. "
            "Run `rayception stack up` first."
        )
    os.environ.update(s3_environment(stack.secrets))
    return Store(StoreConfig(endpoint_url=stack.s3_url, region=REGION, addressing="path"))


@contextlib.contextmanager
def using_store(endpoint_url: str | None) -> Iterator["Store"]:
    """The store of an --endpoint-url; the embedded one runs for the block."""
    with embedded(frozenset({"s3"} if endpoint_url == LOCAL else ())):
        yield open_store(endpoint_url)


def quiet(line: str) -> None:
    """Where the stack's start is not what was asked for."""


@contextlib.contextmanager
def embedded(parts: frozenset[str], log: "Log" = quiet) -> Iterator["Stack | None"]:
    """The embedded stack with these services (Ray is not among them) for the block: started where
    it does not run, and turned off again; None where none is asked for. Raises ServiceError."""
    if not parts:
        yield None
        return
    from orchestration.stack.local import using
    from orchestration.stack.state import stack_folder

    with using(stack_folder(), parts, num_cpus=1, log=log) as stack:
        yield stack


def checked_url(url: str) -> str:
    if not url.startswith(SCHEMES) or len(url.split("/")) < 4:
        raise JobError(
            f"URL: got {without_secrets(url)!r}; a prefix or a pattern of shards: "
            "s3://BUCKET/PATH, file:///PATH or https://HOST/PATH. Write it so."
        )
    return url.rstrip("/")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
