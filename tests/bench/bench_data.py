"""`make bench-data`: images per second of one core, ours beside others on the same images.

The images are made of the two photographs that scikit-learn ships (china.jpg, flower.jpg, 640 x
427): crops of random size and place, enlarged to about 500 x 420, JPEG quality 90 to 97: about
0.21 megapixels, as ImageNet's are. Every pipeline gives batches of 64 random-resized crops of 299
pixels with flips; all of them run in this process on one processor, in turn, several rounds, and
the table gives medians and ratios. Ours ends in uint8 (normalisation belongs to the device), the
others in the float tensors that their usual transforms make.
"""

import argparse
import io
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.augment import Augment, crop_box, draw, is_mirrored
from datasets.decode import decode_image
from datasets.loader import TrainLoader
from datasets.manifest import Manifest
from datasets.order import Order
from datasets.pack import pack
from datasets.store import Store, StoreConfig
from datasets.stream import REQUEST_BYTES, fetch_window
from orchestration import services
from orchestration.services import Secrets

PIXELS, BATCH = 299, 64
AUGMENT = Augment()


def make_images(count: int) -> Iterator[bytes]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [
        *load_sample_images().images,
        data.stereo_motorcycle()[0],
        data.immunohistochemistry(),
    ]
    textures = [np.stack([grey] * 3, axis=2) for grey in (data.grass(), data.gravel())]
    photographs = [Image.fromarray(array) for array in (*arrays, *textures)]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        width = min(photograph.width, int(random.integers(440, 520)))
        height = min(photograph.height, int(random.integers(370, 460)))
        left = int(random.integers(0, photograph.width - width + 1))
        top = int(random.integers(0, photograph.height - height + 1))
        buffer = io.BytesIO()
        crop = photograph.crop((left, top, left + width, top + height))
        crop.save(buffer, "JPEG", quality=int(random.integers(90, 98)))
        yield buffer.getvalue()


def usual_transform(image: Image.Image, number: int) -> torch.Tensor:
    """What the usual transforms do: crop and resize in PIL, flip, float tensor, normalise."""
    numbers = draw(0, 0, 0, number, AUGMENT)
    top, left, height, width = crop_box(numbers, image.height, image.width, AUGMENT)
    image = image.resize(
        (PIXELS, PIXELS), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    if is_mirrored(numbers, AUGMENT):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    array = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return (array.float() / 255 - 0.5) / 0.5


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """Files read one by one, as torch's image folders do."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return usual_transform(image.convert("RGB"), index), index


def decode_only(images: list[bytes]) -> int:
    for content in images:
        decode_image(content, "bench")
    return len(images)


def ours(store: Store, manifest: Manifest) -> int:
    order = Order(
        seed=0, samples_per_shard=manifest.samples_per_shard, num_lanes=8, pieces=2, slices=4
    )
    steps = manifest.num_samples // BATCH
    with TrainLoader(
        store, manifest, order, rank=0, world_size=1, global_batch_size=BATCH,
        micro_batch_size=BATCH, input_size=PIXELS, augment=AUGMENT, threads=0,
    ) as loader:  # fmt: skip
        return sum(len(batch.targets) for step in islice(loader, steps) for batch in step)


def webdataset_pil(manifest: Manifest) -> int:
    urls = [manifest.shard_url(i).removeprefix("file://") for i in range(len(manifest.shards))]
    numbers = iter(range(10**9))
    pipeline = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(200)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(lambda image: usual_transform(image, next(numbers)), lambda label: label)
        .batched(BATCH, collation_fn=default_collate)
    )
    return sum(len(labels) for _, labels in pipeline)


def folder_pil(paths: list[Path]) -> int:
    return sum(len(labels) for _, labels in DataLoader(Folder(paths), BATCH, shuffle=True))


def compare(pipelines: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Images per second of each pipeline, in turn, `rounds` times after a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, work in pipelines.items():
            began = time.perf_counter()
            count = work()
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return rates


def print_table(console: Console, rates: dict[str, list[float]], base: str) -> None:
    table = Table("pipeline", "images/s", "times base", title=f"one core; base: {base}")
    for name, values in rates.items():
        ratios = [a / b for a, b in zip(values, rates[base], strict=True)]
        table.add_row(name, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}")
    console.print(table)


def bench_s3(console: Console, images: list[bytes], rounds: int) -> None:
    """MB/s of our windows against bare parallel 8 MiB range GETs of the same objects."""
    secrets = Secrets(access_key="bench", secret_key="benchbench", ray_token="")
    os.environ.update(services.s3_environment(secrets))
    with tempfile.TemporaryDirectory() as folder:
        port = services.free_ports(1)[0]
        command = services.s3_command(Path(folder), port, secrets)
        server = subprocess.Popen(
            command.arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **command.environment},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not services.s3_is_ready(port):
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.2)
            url = f"http://127.0.0.1:{port}"
            store = Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))
            samples = (
                {"__key__": f"{i:06d}", "jpg": content, "cls": b"0"}
                for i, content in enumerate(images)
            )
            manifest = pack(samples, store, "s3://data/x", classes=["a"], samples_per_shard=320)
            size = manifest.size_bytes

            def raw() -> int:
                ranges = [
                    (manifest.shard_url(i), at, min(REQUEST_BYTES, shard.size_bytes - at))
                    for i, shard in enumerate(manifest.shards)
                    for at in range(0, shard.size_bytes, REQUEST_BYTES)
                ]
                with ThreadPoolExecutor(4) as pool:
                    return sum(len(c) for c in pool.map(lambda r: store.read_range(*r), ranges))

            def windows() -> int:
                order = Order(
                    seed=0, samples_per_shard=manifest.samples_per_shard, num_lanes=4, pieces=1,
                    slices=2,
                )  # fmt: skip
                parts = [w for lane in range(4) for w in order.windows(0, lane)]
                with ThreadPoolExecutor(4) as pool:
                    for _ in pool.map(lambda w: fetch_window(store, manifest, w), parts):
                        pass
                return size

            rates = compare({"boto3, 8 MiB ranges x 4": raw, "our windows x 4": windows}, rounds)
            base = rates["boto3, 8 MiB ranges x 4"]
            table = Table("S3 on loopback", "MB/s", "times base")
            for name, values in rates.items():
                ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
                table.add_row(name, f"{statistics.median(values) / 1e6:.0f}", f"{ratio:.2f}")
            console.print(table)
        finally:
            server.kill()  # its data go with the folder
            server.wait(20)


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
        f"{megapixels:.2f} megapixels"
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
        rates = compare(
            {
                "webdataset + PIL": lambda: webdataset_pil(manifest),
                "image folder + PIL": lambda: folder_pil(paths),
                "rayception": lambda: ours(store, manifest),
                "decode only": lambda: decode_only(images),
            },
            options.rounds,
        )
    print_table(console, rates, "webdataset + PIL")
    share = statistics.median(
        a / b for a, b in zip(rates["rayception"], rates["decode only"], strict=True)
    )
    console.print(f"rayception is {share:.2f} of the decode-only rate")
    os.sched_setaffinity(0, processors)
    bench_s3(console, images, options.rounds)


if __name__ == "__main__":
    main()
