"""A job's data section as loaders, disk cache and decoder of one rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.images.augment import Augment
from datasets.images.nvjpeg import GpuDecoder
from datasets.loading.loader import EvalLoader, TrainLoader
from datasets.order import Order
from datasets.shards.manifest import Manifest
from datasets.storage.cache import DiskCache
from datasets.storage.store import Store
from orchestration.job.job import Job
from orchestration.job.plan import Plan


def build_cache(job: Job) -> DiskCache | None:
    """The node's disk cache, if the job has one. Raises StoreError if it is not writable."""
    if not job.data.cache_gib:
        return None
    cache = DiskCache(Path(job.data.cache_folder), int(job.data.cache_gib * 2**30))
    cache.check()
    return cache


def data_position(job: Job, manifest: Manifest) -> dict[str, Any]:
    """What determines a run's sequence of samples; a checkpoint must have the same."""
    data, shuffle = job.data, job.data.shuffle
    return {
        "seed": job.seed,
        "lanes": shuffle.lanes,
        "pieces": shuffle.pieces,
        "slices": shuffle.slices,
        "global_batch_size": data.global_batch_size,
        "micro_batch_size": data.micro_batch_size,
        "fingerprint": manifest.fingerprint,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaders:
    """Makes the loaders of one rank in one attempt."""

    job: Job
    plan: Plan
    store: Store
    rank: int
    world_size: int
    decoder: GpuDecoder | None

    def train_loader(self, manifest: Manifest, *, step: int) -> TrainLoader:
        """Training batches, from the one after `step` finished steps on."""
        job, plan = self.job, self.plan
        augment, shuffle = job.data.augment, job.data.shuffle
        order = Order(
            seed=job.seed,
            samples_per_shard=manifest.samples_per_shard,
            num_lanes=shuffle.lanes,
            pieces=shuffle.pieces,
            slices=shuffle.slices,
        )
        return TrainLoader(
            self.store,
            manifest,
            order,
            rank=self.rank,
            world_size=self.world_size,
            global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.micro_batch_size,
            input_size=job.model.input_size,
            augment=Augment(
                area=augment.area,
                aspect=augment.aspect,
                flip=augment.flip,
                colour=augment.colour,
                operations=augment.rand_operations,
                magnitude=augment.rand_magnitude,
            ),
            workers=plan.loader_workers,
            threads=self._threads,
            is_skipping=job.data.max_damaged > 0,
            first_step=step,
            decoder=self.decoder,
        )

    def eval_loader(self, manifest: Manifest) -> EvalLoader:
        """Batches of the validation split."""
        job = self.job
        return EvalLoader(
            self.store,
            manifest,
            rank=self.rank,
            world_size=self.world_size,
            batch_size=self.plan.eval_batch_size,
            input_size=job.model.input_size,
            crop=job.data.eval_crop,
            threads=self._threads,
            is_skipping=job.data.max_damaged > 0,
            decoder=self.decoder,
        )

    @property
    def _threads(self) -> int:
        """Decoding threads in the rank's process."""
        if self.decoder is not None:
            return self.job.data.loader_workers or self.job.cluster.cpus_per_worker
        return max(1, self.plan.loader_workers)
