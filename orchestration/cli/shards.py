"""Commands that make a split: pack, index."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.cli.data import (
    DEFAULT_THREADS,
    SCHEMES,
    AsJson,
    Endpoint,
    Threads,
    checked_url,
    open_store,
    progress_bar,
)
from orchestration.cli.tables import make_console, panel, print_result
from orchestration.errors import JobError
from orchestration.job.rules import redact_url

if TYPE_CHECKING:
    from datasets.shards.manifest import Manifest

LabelField = Annotated[
    str | None, typer.Option(help="Field of a .json label. Left out: label, cls or class.")
]


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
    """Pack images or tars into shards with an index; a killed pack continues when called again."""
    from datasets.packing.files import list_images, plan_shards
    from datasets.packing.index import find_shards
    from datasets.packing.pack import pack_shards
    from datasets.packing.repack import plan_repack

    url = checked_url(destination)
    store = open_store(endpoint_url)
    shard_bytes = shard_mib * 2**20
    with progress_bar() as bar:
        if _is_shards(source):
            entries = find_shards(store, source)
            listing = bar.add_task("shards listed", total=len(entries))
            plans, classes = plan_repack(
                store, entries, shard_bytes=shard_bytes, field=label_field,
                on_shard=lambda _: bar.advance(listing),
            )  # fmt: skip
        else:
            images, classes = list_images(Path(source))
            plans = plan_shards(images, shard_bytes=shard_bytes, seed=seed)
        packing = bar.add_task("shards packed", total=len(plans))
        manifest = pack_shards(
            plans, store, url, classes=classes, workers=threads,
            on_shard=lambda _: bar.advance(packing),
        )  # fmt: skip
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
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums",
            help="Read every byte too, and keep a CRC-32C of each sample. An index that the split "
            "has keeps its classes.",
        ),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Shards indexed at once.")] = 16,
    endpoint_url: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Index tar shards of other programs, from their headers alone unless --checksums is given."""
    from datasets.packing.checksum import add_checksums, keep_index
    from datasets.packing.index import find_shards, index_shards
    from datasets.shards.manifest import save_manifest

    if len(urls) > 1:
        raise JobError(
            f"URL: got {len(urls)} of them; one prefix or pattern. Quote the pattern, so that the "
            "shell leaves its braces alone."
        )
    url = checked_url(urls[0])
    index_url = checked_url(to) if to is not None else url
    if index_url.startswith("http"):
        raise JobError(
            f"--to: got {redact_url(index_url)!r}; an index is written to s3:// or file://, "
            "and a web server is read only. Name a prefix of your own: --to s3://BUCKET/PATH."
        )
    store = open_store(endpoint_url)
    entries = find_shards(store, url)
    with progress_bar() as bar:
        task = bar.add_task("shards indexed", total=len(entries))
        result = index_shards(
            store, index_url, entries, classes=_read_class_names(classes), field=label_field,
            workers=threads, on_shard=lambda _: bar.advance(task),
        )  # fmt: skip
        manifest = result.manifest
        if checksums:
            if classes is None and label_field is None:
                manifest = keep_index(store, manifest)
            reading = bar.add_task("shards read", total=len(entries))
            manifest = add_checksums(
                store, manifest, workers=threads, on_shard=lambda _: bar.advance(reading)
            )
    save_manifest(store, manifest)
    missing = {"image": result.without_image, "label": result.without_label}
    for part, (count, examples) in missing.items():
        if count:
            make_console(stderr=True).print(
                f"{url}: got {count:,} samples without {part}, such as {', '.join(examples)}; "
                "training counts them as damaged.",
                soft_wrap=True,
            )
    _print_manifest(f"indexed {url}", manifest, as_json)


def _print_manifest(title: str, manifest: "Manifest", as_json: bool) -> None:
    values = {
        "url": manifest.url,
        "num_samples": manifest.num_samples,
        "classes": list(manifest.classes),
        "label": manifest.label,
        "num_shards": len(manifest.shards),
        "size_bytes": manifest.size_bytes,
        "fingerprint": manifest.fingerprint,
        "has_checksums": manifest.has_checksums,
    }
    rows = {
        "samples": f"{manifest.num_samples:,}",
        "classes": f"{manifest.num_classes:,}",
        "shards": f"{len(manifest.shards):,}, {manifest.size_bytes / 1e6:,.1f} MB",
        "checksums": "of every sample"
        if manifest.has_checksums
        else "none; `rayception index --checksums` adds them",
        "fingerprint": manifest.fingerprint,
        "in a job": f"data.train (or data.val): {manifest.url}, "
        f"model.num_classes: {manifest.num_classes}",
    }
    print_result(as_json, values, panel(title, rows))


def _is_shards(source: str) -> bool:
    """Whether the source is tars: a URL, a pattern, a .tar, or a folder that holds some."""
    if source.startswith(SCHEMES) or source.endswith(".tar") or "{" in source:
        return True
    return any(Path(source).glob("*.tar"))


def _read_class_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(
            f"--classes: got {str(path)!r} ({error}); a text file with one class name a line. "
            "Name such a file."
        ) from error
    if len(set(names)) != len(names) or not names:
        raise JobError(
            f"--classes: got {len(names)} names, {len(set(names))} of them different; each class "
            "has a name of its own. Correct the file."
        )
    return names
