"""The verbs about data: pack, verify, inspect."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.store import Store, StoreConfig
from orchestration.errors import JobError
from orchestration.tables import print_json, print_panel

console = Console(highlight=False)

Endpoint = Annotated[
    str | None,
    typer.Option(help="S3 endpoint: a URL, or `local`, the running stack's. Left out: AWS."),
]
Url = Annotated[str, typer.Argument(metavar="URL", help="The split's prefix, s3:// or file://.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Threads = Annotated[int, typer.Option(min=1, help="Shards worked at once.")]
DEFAULT_THREADS = min(8, os.cpu_count() or 1)


def pack(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A folder of class folders, or a CSV.")
    ],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A prefix, s3:// or file://.")],
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard, MiB.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Decides which shard an image is in.")] = 0,
    threads: Threads = DEFAULT_THREADS,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Pack images into shards with an index; a killed pack goes on where it was."""
    from datasets.files import list_images, plan_shards
    from datasets.pack import pack_shards

    url = _checked(destination)
    store = _open_store(endpoint_url)
    images, classes = list_images(source)
    plans = plan_shards(images, shard_bytes=shard_mib * 2**20, seed=seed)
    with _progress() as bar:
        task = bar.add_task("shards packed", total=len(plans))
        manifest = pack_shards(
            plans,
            store,
            url,
            classes=classes,
            workers=threads,
            on_shard=lambda shard: bar.advance(task),
        )
    rows = {
        "samples": f"{manifest.num_samples:,}",
        "classes": f"{manifest.num_classes:,}",
        "shards": f"{len(manifest.shards):,}, {manifest.size_bytes / 1e6:,.1f} MB",
        "fingerprint": manifest.fingerprint,
        "in a job": f"data.train (or data.val): {url}, model.num_classes: {manifest.num_classes}",
    }
    if as_json:
        print_json(
            {
                "url": url,
                "num_samples": manifest.num_samples,
                "classes": list(classes),
                "num_shards": len(manifest.shards),
                "size_bytes": manifest.size_bytes,
                "fingerprint": manifest.fingerprint,
            }
        )
    else:
        print_panel(console, f"packed into {url}", rows)


def verify(
    url: Url, threads: Threads = DEFAULT_THREADS, endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Read everything and report each damaged shard and sample; exit code 2 if there is one."""
    from datasets import audit
    from datasets.manifest import load_manifest

    store = _open_store(endpoint_url)
    manifest = load_manifest(store, _checked(url))
    with _progress() as bar:
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
    from datasets import audit
    from datasets.manifest import load_manifest

    store = _open_store(endpoint_url)
    contents = audit.inspect(store, load_manifest(store, _checked(url)), look_at=look_at)
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


def _open_store(endpoint_url: str | None) -> Store:
    """The store of an --endpoint-url; credentials come from the environment."""
    from orchestration.services import REGION, s3_environment
    from orchestration.stack import load_stack, stack_folder

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


def _checked(url: str) -> str:
    if not url.startswith(("s3://", "file:///")) or len(url.split("/")) < 4:
        raise JobError(
            f"URL: got {url!r}; a prefix, s3://BUCKET/PATH or file:///PATH. Write it so."
        )
    return url.rstrip("/")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
