"""The verbs about data: pack, index, verify, inspect."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.store import Store, StoreConfig
from orchestration.errors import JobError
from orchestration.rules import without_userinfo
from orchestration.tables import print_json, print_panel

if TYPE_CHECKING:
    from datasets.manifest import Manifest

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Endpoint = Annotated[
    str | None,
    typer.Option(help="S3 endpoint: a URL, or `local`, the running stack's. Left out: AWS."),
]
Url = Annotated[
    str,
    typer.Argument(metavar="URL", help="The split: a prefix, or the pattern that was indexed."),
]
LabelField = Annotated[
    str | None, typer.Option(help="Field of a .json label. Left out: label, cls or class.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Threads = Annotated[int, typer.Option(min=1, help="Shards worked at once.")]
SCHEMES = ("s3://", "file:///", "http://", "https://")
DEFAULT_THREADS = min(8, os.cpu_count() or 1)


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A folder of class folders, a CSV, or tar shards (prefix, pattern)."
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A prefix, s3:// or file://.")],
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard, MiB.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Decides which shard an image is in.")] = 0,
    label_field: LabelField = None,
    threads: Threads = DEFAULT_THREADS,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Pack images or tars into shards with an index; a killed pack goes on where it was."""
    from datasets.files import list_images, plan_shards
    from datasets.index import find_shards
    from datasets.pack import pack_shards
    from datasets.repack import plan_repack

    url = _checked(destination)
    store = _open_store(endpoint_url)
    shard_bytes = shard_mib * 2**20
    with _progress() as bar:
        if _is_shards(source):
            entries = find_shards(store, source)
            task = bar.add_task("shards listed", total=len(entries))
            plans, classes = plan_repack(
                store,
                entries,
                shard_bytes=shard_bytes,
                field=label_field,
                on_shard=lambda listing: bar.advance(task),
            )
        else:
            images, classes = list_images(Path(source))
            plans = plan_shards(images, shard_bytes=shard_bytes, seed=seed)
        packing = bar.add_task("shards packed", total=len(plans))
        manifest = pack_shards(
            plans,
            store,
            url,
            classes=classes,
            workers=threads,
            on_shard=lambda shard: bar.advance(packing),
        )
    _print_manifest(f"packed into {url}", manifest, as_json)


def index(
    urls: Annotated[
        list[str],
        typer.Argument(
            metavar="URL", help="A prefix, or a quoted pattern such as 's3://b/x-{000..099}.tar'."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(help="The prefix to write the index to. Left out: beside the shards."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="A file of class names, one a line, in label order.")
    ] = None,
    label_field: LabelField = None,
    threads: Annotated[int, typer.Option(min=1, help="Shards walked at once.")] = 16,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Index tar shards that somebody else wrote, by their headers alone."""
    from datasets.index import find_shards, index_shards
    from datasets.manifest import save_manifest

    if len(urls) > 1:
        raise JobError(
            f"URL: got {len(urls)} of them; one prefix or pattern. Quote the pattern, so that the "
            "shell leaves its braces alone."
        )
    url = _checked(urls[0])
    place = _checked(to) if to is not None else url
    if place.startswith("http"):
        raise JobError(
            f"--to: got {without_userinfo(place)!r}; an index is written to s3:// or file://, and "
            "a web server is read only. Name a prefix of your own: --to s3://BUCKET/PATH."
        )
    store = _open_store(endpoint_url)
    entries = find_shards(store, url)
    with _progress() as bar:
        task = bar.add_task("shards indexed", total=len(entries))
        found = index_shards(
            store,
            place,
            entries,
            classes=_class_names(classes),
            field=label_field,
            workers=threads,
            on_shard=lambda listing: bar.advance(task),
        )
    save_manifest(store, found.manifest)
    for what, (count, examples) in (
        ("image", found.without_image),
        ("label", found.without_label),
    ):
        if count:
            errors.print(
                f"{url}: got {count:,} samples without {what}, such as {', '.join(examples)}; "
                "training counts them as damaged.",
                soft_wrap=True,
                markup=False,
            )
    _print_manifest(f"indexed {url}", found.manifest, as_json)


def _print_manifest(title: str, manifest: "Manifest", as_json: bool) -> None:
    rows = {
        "samples": f"{manifest.num_samples:,}",
        "classes": f"{manifest.num_classes:,}",
        "shards": f"{len(manifest.shards):,}, {manifest.size_bytes / 1e6:,.1f} MB",
        "fingerprint": manifest.fingerprint,
        "in a job": f"data.train (or data.val): {manifest.url}, "
        f"model.num_classes: {manifest.num_classes}",
    }
    if as_json:
        print_json(
            {
                "url": manifest.url,
                "num_samples": manifest.num_samples,
                "classes": list(manifest.classes),
                "label": manifest.label,
                "num_shards": len(manifest.shards),
                "size_bytes": manifest.size_bytes,
                "fingerprint": manifest.fingerprint,
            }
        )
    else:
        print_panel(console, title, rows)


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
    if not url.startswith(SCHEMES) or len(url.split("/")) < 4:
        raise JobError(
            f"URL: got {without_userinfo(url)!r}; a prefix or a pattern of shards: "
            "s3://BUCKET/PATH, file:///PATH or https://HOST/PATH. Write it so."
        )
    return url.rstrip("/")


def _is_shards(source: str) -> bool:
    """Whether what is to be packed is tars: a URL, a pattern, a .tar, a folder that holds some."""
    if source.startswith(SCHEMES) or source.endswith(".tar") or "{" in source:
        return True
    return any(Path(source).glob("*.tar"))


def _class_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            f"--classes: got {str(path)!r} ({error}); a text file with a class name a line. "
            "Name one."
        ) from error
    if len(set(names)) != len(names) or not names:
        raise JobError(
            f"--classes: got {len(names)} names, {len(set(names))} of them different; each class "
            "has its own. Mend the file."
        )
    return names


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
