"""The GPU decoder on nvImageCodec's CPU backend; tests/gpu runs it on a GPU."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch

from datasets.errors import ImageError
from datasets.loading.loader import EvalLoader
from datasets.packing.pack import pack
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests.unit.datasets.loaders import order_of, train_loader
from tests.unit.datasets.photos import photo_samples

pytest.importorskip("nvidia.nvimgcodec")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Real crops: JPEGs, and a PNG, a grey and a CMYK JPEG among them."""
    url = tmp_path_factory.mktemp("photos").as_uri()
    return pack(photo_samples(60), Store(), url, classes=["a", "b"], samples_per_shard=20)


def test_it_gives_the_cpus_batches_up_to_rounding(split: Manifest) -> None:
    from datasets.images.nvjpeg import GpuDecoder

    order = order_of(split, seed=0, lanes=4, pieces=2, slices=8)
    by_decoder = []
    for decoder in (None, GpuDecoder(torch.device("cpu"))):
        with train_loader(
            Store(), split, order=order, global_batch_size=20, micro_batch_size=10, input_size=64,
            threads=2, decoder=decoder,
        ) as loader:  # fmt: skip
            batches = [batch for step in islice(loader, 3) for batch in step]
        with EvalLoader(
            Store(), split, rank=0, world_size=1, batch_size=30, input_size=64, decoder=decoder
        ) as loader:
            by_decoder.append([*batches, *loader])
    for cpu, other in zip(*by_decoder, strict=True):
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
            rng = random.Random(number)
            top, left = rng.randrange(height), rng.randrange(width)
            return top, left, rng.randint(1, height - top), rng.randint(1, width - left)

        target = torch.empty(1, 48, 48, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        decoder.resize_into(target, images[number % len(images)], box, "k")
        return target

    one_thread = [view(number) for number in range(1000)]
    with ThreadPoolExecutor(4) as pool:
        four_threads = list(pool.map(view, range(1000)))
    assert all(torch.equal(a, b) for a, b in zip(one_thread, four_threads, strict=True))


def test_damage_is_reported_by_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> None:
    from datasets.images.nvjpeg import GpuDecoder

    decoder = GpuDecoder(torch.device("cpu"))
    target = torch.empty(1, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    content = next(iter(photo_samples(1)))["jpg"]
    for damaged in (b"", b"no image", content[: len(content) // 2], b"\xff\xd8" + bytes(100)):
        with pytest.raises(ImageError, match=r"^k: got \d+ bytes that are no whole image"):
            decoder.resize_into(target, damaged, lambda h, w: (0, 0, h, w), "k")
