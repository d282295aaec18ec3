"""The GPU decoder's own path, run on nvImageCodec's CPU backend; tests/gpu runs it on a GPU."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from datasets.errors import ImageError
from datasets.images.augment import Augment
from datasets.loading.loader import EvalLoader, TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests.unit.datasets.photos import photo_samples

pytest.importorskip("nvidia.nvimgcodec")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Real crops: JPEGs, and among them a PNG, a grey and a CMYK JPEG."""
    url = tmp_path_factory.mktemp("photos").as_uri()
    return pack(photo_samples(60), Store(), url, classes=["a", "b"], samples_per_shard=20)


def test_it_gives_the_cpus_batches_up_to_rounding(split: Manifest) -> None:
    from datasets.images.nvjpeg import GpuDecoder

    order = Order(seed=0, samples_per_shard=split.samples_per_shard, num_lanes=4, pieces=2)
    found = []
    for decoder in (None, GpuDecoder(torch.device("cpu"))):
        with TrainLoader(
            Store(), split, order, rank=0, world_size=1, global_batch_size=20,
            micro_batch_size=10, input_size=64, augment=Augment(), threads=2, decoder=decoder,
        ) as loader:  # fmt: skip
            batches = [batch for step in islice(loader, 3) for batch in step]
        with EvalLoader(
            Store(), split, rank=0, world_size=1, batch_size=30, input_size=64, decoder=decoder
        ) as loader:
            found.append([*batches, *loader])
    for cpu, other in zip(*found, strict=True):
        assert torch.equal(cpu.samples, other.samples)
        assert torch.equal(cpu.targets, other.targets)
        assert torch.equal(cpu.mirrored, other.mirrored)
        assert bool((other.weights == 1).all())
        difference = (cpu.images.int() - other.images.int()).abs()
        assert int(difference.max()) <= 2
        assert float(difference.float().mean()) < 0.3


def test_threads_do_not_get_each_others_pixels() -> None:
    from datasets.images.nvjpeg import GpuDecoder

    decoder = GpuDecoder(torch.device("cpu"))
    images = [sample["jpg"] for sample in photo_samples(60) if "jpg" in sample]

    def view(number: int) -> torch.Tensor:
        def box(height: int, width: int) -> tuple[int, int, int, int]:
            choose = random.Random(number)
            top, left = choose.randrange(height), choose.randrange(width)
            return top, left, choose.randint(1, height - top), choose.randint(1, width - left)

        target = torch.empty(1, 48, 48, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        decoder.resize_into(target, images[number % len(images)], box, "k")
        return target

    alone = [view(number) for number in range(1000)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(view, range(1000)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_damage_is_the_cpus_word(tmp_path_factory: pytest.TempPathFactory) -> None:
    from datasets.images.nvjpeg import GpuDecoder

    decoder = GpuDecoder(torch.device("cpu"))
    target = torch.empty(1, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    content = next(iter(photo_samples(1)))["jpg"]
    for damaged in (b"", b"no image", content[: len(content) // 2], b"\xff\xd8" + bytes(100)):
        with pytest.raises(ImageError, match=r"^k: got \d+ bytes that are no whole image"):
            decoder.resize_into(target, damaged, lambda h, w: (0, 0, h, w), "k")
