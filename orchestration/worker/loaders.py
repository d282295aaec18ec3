"""What a rank reads and how: a job's data section made into loaders, cache and decoder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    """The node's disk cache, if the job has one. Raises StoreError where it cannot be written."""
    if not job.data.cache_gib:
        return None
    cache = DiskCache(Path(job.data.cache_folder), int(job.data.cache_gib * 2**30))
    cache.check()
    return cache


def build_order(job: Job, manifest: Manifest) -> Order:
    """The canonical order of the training split."""
    shuffle = job.data.shuffle
    return Order(
        seed=job.seed,
        samples_per_shard=manifest.samples_per_shard,
        num_lanes=shuffle.lanes,
        pieces=shuffle.pieces,
        slices=shuffle.slices,
    )


def data_position(job: Job, manifest: Manifest) -> dict[str, Any]:
    """Which sequence of samples a run walks: what a checkpoint must agree with."""
    shuffle = job.data.shuffle
    return {
        "seed": job.seed,
        "lanes": shuffle.lanes,
        "pieces": shuffle.pieces,
        "slices": shuffle.slices,
        "global_batch_size": job.data.global_batch_size,
        "micro_batch_size": job.data.micro_batch_size,
        "fingerprint": manifest.fingerprint,
    }


def build_decoder(job: Job, device: torch.device) -> GpuDecoder | None:
    """The rank's GPU decoder, if the job has one. Raises LoaderError where it is not installed."""
    return GpuDecoder(device) if job.data.decoder == "nvjpeg" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaders:
    """One rank's way to its batches; its ranks are those of one attempt."""

    job: Job
    plan: Plan
    store: Store
    rank: int
    world_size: int
    decoder: GpuDecoder | None

    def train_loader(self, manifest: Manifest, *, step: int) -> TrainLoader:
        """The rank's training batches from step `step` on."""
        job, plan = self.job, self.plan
        augment = job.data.augment
        return TrainLoader(
            self.store,
            manifest,
            build_order(job, manifest),
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
            start_position=step * plan.global_batch_size,
            decoder=self.decoder,
        )

    def eval_loader(self, manifest: Manifest) -> EvalLoader:
        """The rank's held-out batches."""
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
        """Decoding threads of the rank's own process, where it decodes itself."""
        if self.decoder is not None:
            return self.job.data.loader_workers or self.job.cluster.cpus_per_worker
        return max(1, self.plan.loader_workers)
