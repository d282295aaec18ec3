"""Archives built header by header, as programs beside Python's tarfile write them, and what a user
gets from them: index, verification, training and evaluation."""

import io
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from PIL import Image

from datasets.loading.batch import MicroBatch
from datasets.loading.loader import EvalLoader
from datasets.packing.audit import verify
from datasets.packing.index import IndexResult, find_shards, index_shards
from datasets.shards.manifest import load_manifest, save_manifest
from datasets.storage.store import Store
from tests.unit.datasets.loaders import order_of, train_loader

END = bytes(1024)


def member(
    name: bytes | str,
    content: bytes = b"",
    *,
    kind: bytes = b"0",
    size: bytes | None = None,
    link: bytes = b"",
) -> bytes:
    """A ustar header and its content. size: the field as it stands there, 12 bytes."""
    name = name.encode() if isinstance(name, str) else name
    assert len(name) <= 100
    size = b"%011o\0" % len(content) if size is None else size
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0"
    tail = kind + link.ljust(100, b"\0") + b"ustar\x0000"
    total = sum(head) + 8 * 32 + sum(tail)
    header = (head + b"%06o\0 " % total + tail).ljust(512, b"\0")
    return header + content + bytes(-len(content) % 512)


def pax(records: Mapping[str, str | bytes], kind: bytes = b"x") -> bytes:
    """An extension header of the next member, or of all (kind g)."""
    body = b""
    for key, value in records.items():
        text = value.encode() if isinstance(value, str) else value
        rest = b" " + key.encode() + b"=" + text + b"\n"
        length = len(rest) + 1
        while len(b"%d" % length) + len(rest) != length:
            length += 1
        body += b"%d" % length + rest
    return member("PaxHeaders/x", body, kind=kind)


def picture(number: int) -> bytes:
    """A PNG of one grey, by which it is recognised."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (grey(number),) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def grey(number: int) -> int:
    return 30 + 20 * number


def label(number: int) -> bytes:
    return str(number).encode()


def sample(number: int, stem: str | None = None) -> bytes:
    """The two members of sample `number`, which is of class `number`."""
    stem = f"{number:04d}" if stem is None else stem
    return member(f"{stem}.cls", label(number)) + member(f"{stem}.png", picture(number))


def write(folder: Path, *shards: bytes) -> str:
    """Writes the shards as they are; -> the URL of the split."""
    for number, content in enumerate(shards):
        (folder / f"x-{number}.tar").write_bytes(content)
    return folder.as_uri()


def indexed(url: str) -> IndexResult:
    """As `rayception index` does. Raises DataError."""
    result = index_shards(Store(), url, find_shards(Store(), url))
    save_manifest(Store(), result.manifest)
    return result


def damages_of(url: str) -> list[str]:
    """What `rayception verify` says."""
    damages = verify(Store(), load_manifest(Store(), url), threads=1, on_shard=lambda: None)
    return [damage.message for damage in damages]


def read(url: str) -> tuple[dict[str, int], list[str]]:
    """(class of each sample by key, messages of the damaged ones): the same in training as in
    evaluation."""
    classes, messages = evaluate(url)
    assert (classes, sorted(messages)) == (train(url)[0], sorted(train(url)[1]))
    return classes, messages


def evaluate(url: str) -> tuple[dict[str, int], list[str]]:
    """(class of each sample by key, messages of the damaged ones); each picture is its class's."""
    manifest = load_manifest(Store(), url)
    with EvalLoader(
        Store(), manifest, rank=0, world_size=1, batch_size=4, input_size=8, is_skipping=True
    ) as loader:
        return _classes(list(loader)), loader.damages.first


def train(url: str) -> tuple[dict[str, int], list[str]]:
    """As `evaluate`, in a step that holds the whole split."""
    manifest = load_manifest(Store(), url)
    order = order_of(manifest, lanes=1, pieces=1, slices=1)
    count = manifest.num_samples
    with train_loader(
        Store(), manifest, order=order, global_batch_size=count, micro_batch_size=count,
        input_size=8, is_skipping=True,
    ) as loader:  # fmt: skip
        (step,) = islice(loader, 1)
        return _classes(step), loader.damages.first


def _classes(batches: list[MicroBatch]) -> dict[str, int]:
    classes: dict[str, int] = {}
    for batch in batches:
        for row, key in enumerate(batch.keys):
            if float(batch.weights[row]):
                number = int(batch.targets[row])
                assert bool((batch.images[row] == grey(number)).all()), key
                assert key not in classes
                classes[key] = number
    return classes
