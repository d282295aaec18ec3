"""A training loader with small defaults, for the tests of this folder."""

from typing import Any

from datasets.images.augment import Augment
from datasets.loading.loader import TrainLoader
from datasets.order import Order
from datasets.shards.manifest import Manifest
from datasets.storage.store import Store

BATCH, MICRO, PIXELS = 48, 8, 16


def order_of(
    manifest: Manifest, *, seed: int = 3, lanes: int = 6, pieces: int = 3, slices: int = 4
) -> Order:
    counts = manifest.samples_per_shard
    return Order(seed=seed, samples_per_shard=counts, num_lanes=lanes, pieces=pieces, slices=slices)


def train_loader(
    store: Store, manifest: Manifest, *, order: Order | None = None, **options: Any
) -> TrainLoader:
    """The loader of the only rank. options: of TrainLoader."""
    defaults: dict[str, Any] = {
        "rank": 0, "world_size": 1, "global_batch_size": BATCH, "micro_batch_size": MICRO,
        "input_size": PIXELS, "augment": Augment(),
    }  # fmt: skip
    return TrainLoader(store, manifest, order or order_of(manifest), **defaults | options)
