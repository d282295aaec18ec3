"""The job's data: the two splits, their order, augmentation and batches. See job.py."""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.rules import at_least, choose, within, without_secrets

SOURCES = ("digits",)
DECODERS = ("cpu", "nvjpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffle:
    """The canonical order (datasets/order.py): part of the job, never of the cluster. More
    lanes and pieces mix better and hold more samples in memory; `plan` prints how many."""

    lanes: int = 16
    pieces: int = 4
    slices: int = 8

    def __post_init__(self) -> None:
        for name in ("lanes", "pieces", "slices"):
            at_least(f"data.shuffle.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What a training image looks like, keyed by (seed, epoch, sample)."""

    # Smallest and largest share of the image's area, and width/height ratio, of the crop.
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 1.3333)
    # Probability of a mirrored image.
    flip: float = 0.5
    # Strength of Inception's colour distortion (brightness, saturation, hue, contrast): 0 is none,
    # 1 is TF-slim's. Made on the device.
    colour: float = 0.0
    # RandAugment (arXiv 1909.13719): how many of its fourteen operations, and how strong, 0 to 10.
    # Made on the CPU.
    rand_operations: int = 0
    rand_magnitude: float = 9.0

    def __post_init__(self) -> None:
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise JobError(
                f"data.augment.area: got {[low, high]}; two shares of the image's area, "
                "0 < smallest <= largest <= 1. Write [0.08, 1.0], the usual choice."
            )
        low, high = self.aspect
        if not 0 < low <= high:
            raise JobError(
                f"data.augment.aspect: got {[low, high]}; two width/height ratios, "
                "0 < smallest <= largest. Write [0.75, 1.3333], the usual choice."
            )
        within("data.augment.flip", self.flip, 0.0, 1.0)
        within("data.augment.colour", self.colour, 0.0, 1.0)
        within("data.augment.rand_operations", self.rand_operations, 0, 14)
        within("data.augment.rand_magnitude", self.rand_magnitude, 0.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The two splits, and how they become batches."""

    # The prefix (s3://bucket/path, file:///path or https://host/path) that holds the split's
    # index.json, or the pattern of shards that was indexed (s3://bucket/train-{0000..0127}.tar).
    train: str
    val: str
    # Pack this data set into the two prefixes where they hold none yet: digits (scikit-learn's
    # 1,797 handwritten digits, 8x8 pixels, split 80/20).
    source: str | None = None
    # Samples of each split, so that `plan` needs no storage. Left out, they are read from the
    # manifests; stated, a manifest that differs stops the run.
    train_samples: int | None = None
    val_samples: int | None = None
    # Beside a stated train_samples: samples of its largest shard and mean bytes of a sample in it,
    # so that `plan` can state the loader's memory.
    train_shard_samples: int | None = None
    train_sample_bytes: int | None = None
    # Samples of one optimizer step over all ranks.
    global_batch_size: int = 256
    # Samples that batch norm sees together (the paper trained with 32 a replica). The batch is a
    # mean over micro-batches of this size, which is why the loss does not depend on the cluster.
    micro_batch_size: int = 32
    # Damaged samples that an attempt skips over all ranks before it stops; each keeps its place in
    # its batch with weight zero. 0: the first one stops the run.
    max_damaged: int = 0
    # Processes of one rank that decode for training; 0: a thread of the rank's own process. Left
    # out: one less than cluster.cpus_per_worker beside a GPU, none on a CPU.
    loader_workers: int | None = None
    # cpu, or nvjpeg: JPEGs are decoded on the rank's GPU, by threads of its own process. Their
    # pixels differ a little.
    decoder: str = "cpu"
    # Parts of remote shards that each node keeps on its disk for later epochs, at most this much;
    # 0 keeps none. The ranks of a node share the folder.
    cache_gib: float = 0.0
    cache_folder: str = "/tmp/rayception-cache"
    # Share of the shorter side that the central square of an evaluation image takes.
    eval_crop: float = 0.875
    shuffle: Shuffle = field(default_factory=Shuffle)
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            url = getattr(self, name)
            if not re.fullmatch(r"(s3://[^/]+/.+|file:///.+|https?://[^/@?]+/[^?]+)", url):
                raise JobError(
                    f"data.{name}: got {without_secrets(url)!r}; the prefix of "
                    "a split, s3://BUCKET/PATH, file:///PATH or https://HOST/PATH without a query. "
                    "Name the folder that holds its index.json, or the pattern of its shards."
                )
        if self.train.rstrip("/") == self.val.rstrip("/"):
            raise JobError(
                f"data.val: got {self.val!r}, which is data.train too; the held-out split has "
                "its own prefix. Name another one."
            )
        if self.source is not None:
            choose("data.source", self.source, SOURCES)
        for name in (
            "train_samples", "val_samples", "train_shard_samples", "train_sample_bytes",
        ):  # fmt: skip
            if getattr(self, name) is not None:
                at_least(f"data.{name}", getattr(self, name), 1)
        at_least("data.global_batch_size", self.global_batch_size, 1)
        at_least("data.micro_batch_size", self.micro_batch_size, 2)
        at_least("data.max_damaged", self.max_damaged, 0)
        if self.loader_workers is not None:
            at_least("data.loader_workers", self.loader_workers, 0)
        choose("data.decoder", self.decoder, DECODERS)
        if self.decoder == "nvjpeg" and self.augment.rand_operations:
            raise JobError(
                f"data.decoder: got nvjpeg with data.augment.rand_operations="
                f"{self.augment.rand_operations}; RandAugment is made on the CPU. Write "
                "data.decoder=cpu, or take the operations out."
            )
        within("data.cache_gib", self.cache_gib, 0.0, 1e6)
        if not self.cache_folder.startswith("/"):
            raise JobError(
                f"data.cache_folder: got {self.cache_folder!r}; an absolute path on every node. "
                "Write one, such as /mnt/nvme/rayception."
            )
        within("data.eval_crop", self.eval_crop, 0.01, 1.0)
        if self.global_batch_size % self.micro_batch_size:
            near = max(1, self.global_batch_size // self.micro_batch_size) * self.micro_batch_size
            raise JobError(
                f"data.global_batch_size: got {self.global_batch_size}; a multiple of "
                f"data.micro_batch_size ({self.micro_batch_size}). Write {near}, or change the "
                "micro-batch."
            )
