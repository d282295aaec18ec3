"""`make bench-data`: images per second of one core, ours beside others on the same images.

Every pipeline gives batches of 64 random-resized crops of 299 pixels; all of them run in this
process on one processor, in turn, several rounds, and the table gives medians and ratios. Ours
ends in uint8 (normalisation and mirrors belong to the device), the others in the float tensors
that their usual transforms make. The images: tests/bench/images.py.
"""

import argparse
import io
import os
import statistics
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from datasets.images.decode import decode_image
from datasets.images.region import has_regions
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store
from tests.bench.bench_s3 import bench_s3
from tests.bench.images import make_images
from tests.bench.pipelines import (
    AUGMENT,
    BATCH,
    PIXELS,
    MosaicStreaming,
    folder_pil,
    timm_wds,
    webdataset_pil,
)
from tests.bench.rates import compare


def decode_only(images: list[bytes]) -> int:
    for content in images:
        decode_image(content, "bench")
    return len(images)


def ours(store: Store, manifest: Manifest) -> int:
    """As a loader process works: fetching threads, decoding in the process' own."""
    order = Order(
        seed=0, samples_per_shard=manifest.samples_per_shard, num_lanes=8, pieces=2, slices=4
    )
    steps = manifest.num_samples // BATCH
    with TrainLoader(
        store, manifest, order, rank=0, world_size=1, global_batch_size=BATCH,
        micro_batch_size=BATCH, input_size=PIXELS, augment=AUGMENT, threads=0,
    ) as loader:  # fmt: skip
        return sum(len(batch.targets) for step in islice(loader, steps) for batch in step)


def print_table(console: Console, rates: dict[str, list[float]], base: str) -> None:
    table = Table("pipeline", "images/s", "times base", title=f"one core; base: {base}")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[base], strict=True)]
        table.add_row(name, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    console = Console()
    images = list(make_images(options.images))
    megapixels = np.mean([np.prod(Image.open(io.BytesIO(c)).size) for c in images]) / 1e6
    console.print(
        f"{len(images)} JPEGs, mean {np.mean([len(c) for c in images]) / 1e3:.0f} kB, "
        f"{megapixels:.2f} megapixels; regions of JPEGs: {'yes' if has_regions() else 'no'}"
    )
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store()
        samples = (
            {"__key__": f"{i:06d}", "jpg": content, "cls": str(i % 10).encode()}
            for i, content in enumerate(images)
        )
        url = (Path(folder) / "shards").as_uri()
        classes = [str(i) for i in range(10)]
        manifest = pack(samples, store, url, classes=classes, samples_per_shard=80)
        paths = [Path(folder) / f"{i:06d}.jpg" for i in range(len(images))]
        for path, content in zip(paths, images, strict=True):
            path.write_bytes(content)
        unverified = load_manifest(store, url, verify=False)
        streaming = MosaicStreaming(Path(folder) / "mds", images)
        rates = compare(
            {
                "webdataset + PIL": lambda: webdataset_pil(manifest),
                "image folder + PIL": lambda: folder_pil(paths),
                "timm's webdataset reader": lambda: timm_wds(manifest),
                "MosaicML streaming": streaming,
                "rayception": lambda: ours(store, manifest),
                "rayception, data.verify: false": lambda: ours(store, unverified),
                "decode only": lambda: decode_only(images),
            },
            options.rounds,
        )
    print_table(console, rates, "webdataset + PIL")
    share = statistics.median(
        a / b for a, b in zip(rates["rayception"], rates["decode only"], strict=True)
    )
    console.print(f"rayception is {share:.2f} of the decode-only rate")
    pairs = zip(rates["rayception"], rates["rayception, data.verify: false"], strict=True)
    price = 1 - statistics.median(verified / plain for verified, plain in pairs)
    console.print(
        f"to compare every sample with its checksum costs {100 * price:.1f} % of the rate"
    )
    os.sched_setaffinity(0, processors)
    bench_s3(console, images, options.rounds)


if __name__ == "__main__":
    main()
