"""What needs a GPU: nvJPEG's own decoder, pinned batches. Skipped where there is none."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from datasets.images.augment import Augment
from datasets.loading.device import to_device
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.storage.store import Store
from tests.unit.datasets.photos import photo_samples

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_nvjpeg_gives_the_cpus_batches_within_50_db(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    from datasets.images.nvjpeg import GpuDecoder

    split = pack(
        photo_samples(60), Store(), tmp_path.as_uri(), classes=["a", "b"], samples_per_shard=20
    )
    order = Order(seed=0, samples_per_shard=split.samples_per_shard, num_lanes=4, pieces=2)
    device = torch.device("cuda", torch.cuda.current_device())
    found = []
    for decoder in (None, GpuDecoder(device)):
        with TrainLoader(
            Store(), split, order, rank=0, world_size=1, global_batch_size=20,
            micro_batch_size=10, input_size=64, augment=Augment(colour=1.0), threads=2,
            decoder=decoder,
        ) as loader:  # fmt: skip
            batches = [batch for step in islice(loader, 3) for batch in step]
        assert all(batch.images.is_pinned() or decoder for batch in batches)
        found.append([to_device(batch, device).images for batch in batches])
    errors = torch.stack([(a - b).square().mean() for a, b in zip(*found, strict=True)])
    assert float(10 * torch.log10(4 / errors).mean()) > 40  # of floats in -1..1, after colours
