"""The job's data: its two splits, their order, augmentation and batches. See job.py."""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.rules import OBJECT_URL, check_fields, redact_url


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffle:
    """The canonical order of samples (datasets/order.py): part of the job, never of the cluster.
    `plan` prints the memory that it takes."""

    # Lanes that the shuffled shards are cut into, from 1 to the number of training samples;
    # neighbours in a batch come from different lanes. More lanes mix better and take more memory.
    lanes: int = field(default=16, metadata={"min": 1})
    # Pieces of shards that each lane mixes at a time, at least 1. More mix better, in more memory.
    pieces: int = field(default=4, metadata={"min": 1})
    # Slices in which each piece is read, at least 1; one slice of each piece is shuffled together.
    # More slices take less memory and mix less.
    slices: int = field(default=8, metadata={"min": 1})

    def __post_init__(self) -> None:
        check_fields(self, "data.shuffle")


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Random changes to a training image, keyed by (seed, epoch, sample)."""

    # Area of the random crop / the image's: [smallest, largest], 0 < smallest <= largest <= 1.
    area: tuple[float, float] = (0.08, 1.0)
    # Width / height of the random crop: [smallest, largest], 0 < smallest <= largest.
    aspect: tuple[float, float] = (0.75, 1.3333)
    # Probability of a horizontal flip, 0 to 1.
    flip: float = field(default=0.5, metadata={"range": (0.0, 1.0)})
    # Strength of Inception's colour distortion (brightness, saturation, hue, contrast), 0 to 1:
    # 0 is none, 1 is TF-slim's. Runs on the device.
    colour: float = field(default=0.0, metadata={"range": (0.0, 1.0)})
    # RandAugment (arXiv 1909.13719) operations per image, on the CPU; 0 to 14, 0 is none.
    rand_operations: int = field(default=0, metadata={"range": (0, 14)})
    # Strength of the RandAugment operations, 0 to 10.
    rand_magnitude: float = field(default=9.0, metadata={"range": (0.0, 10.0)})

    def __post_init__(self) -> None:
        check_fields(self, "data.augment")
        low, high = self.area
        if not 0 < low <= high <= 1:
            raise JobError(
                f"data.augment.area: got {[low, high]}; two fractions of the image's area, "
                "0 < smallest <= largest <= 1. Write [0.08, 1.0], the usual choice."
            )
        low, high = self.aspect
        if not 0 < low <= high:
            raise JobError(
                f"data.augment.aspect: got {[low, high]}; two width/height ratios, "
                "0 < smallest <= largest. Write [0.75, 1.3333], the usual choice."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The two splits, and how they become batches."""

    # Training split: the prefix (s3://bucket/path, file:///path or https://host/path) of its
    # index.json, or the indexed pattern of its shards (s3://bucket/train-{0000..0127}.tar).
    train: str
    # Held-out validation split, as `train`; not the same one.
    val: str
    # Data set to pack into the two prefixes if they are empty: `digits` (scikit-learn's 1,797
    # handwritten digits, 8x8 pixels, split 80/20). Left out: none.
    source: str | None = field(default=None, metadata={"choices": ("digits",)})
    # Samples of the training split, at least 1, so that `plan` needs no storage. Left out, the
    # manifest says it; if stated, a manifest that differs stops the run.
    train_samples: int | None = field(default=None, metadata={"min": 1})
    # Samples of the validation split, as `train_samples`.
    val_samples: int | None = field(default=None, metadata={"min": 1})
    # Samples of the largest training shard, at least 1. Stated with train_sample_bytes and the
    # samples of both splits, it lets `plan` compute the loader's memory.
    train_shard_samples: int | None = field(default=None, metadata={"min": 1})
    # Mean size of a training sample in its shard, in bytes, at least 1. See train_shard_samples.
    train_sample_bytes: int | None = field(default=None, metadata={"min": 1})
    # Samples per optimizer step over all ranks, a multiple of micro_batch_size; at least one
    # micro-batch per rank.
    global_batch_size: int = field(default=256, metadata={"min": 1})
    # Samples that a device computes at once, at least 2: 64 to 256 suit a large GPU. The result is
    # that of this size, whatever the cluster. Batch norm normalizes them together unless
    # model.bn_group_size says otherwise.
    micro_batch_size: int = field(default=32, metadata={"min": 2})
    # Damaged samples, over all ranks, that an attempt may skip, at least 0; each keeps its place in
    # the batch with weight zero. 0: the first one stops the run.
    max_damaged: int = field(default=0, metadata={"min": 0})
    # Whether each sample that is read is compared with its checksum; one that differs is damaged.
    # Left out: if the split has checksums, as packed ones have. `true` refuses a split without.
    verify: bool | None = None
    # Decoding processes per rank for training, at least 0; 0: a thread of the rank's process. Left
    # out: cluster.cpus_per_worker - 1 beside a GPU, none on a CPU.
    loader_workers: int | None = field(default=None, metadata={"min": 0})
    # `cpu`, or `nvjpeg`: threads of the rank's process decode JPEGs on its GPU, with slightly
    # different pixels and without RandAugment.
    decoder: str = field(default="cpu", metadata={"choices": ("cpu", "nvjpeg")})
    # Disk space per node, at most, in GiB, for parts of remote shards to reuse; 0: no cache.
    cache_gib: float = field(default=0.0, metadata={"range": (0.0, 1e6)})
    # Absolute path of that cache on every node; the ranks of a node share it.
    cache_folder: str = "/tmp/rayception-cache"
    # Side of the central square that is evaluated, as a fraction of the shorter side, 0.01 to 1.
    eval_crop: float = field(default=0.875, metadata={"range": (0.01, 1.0)})
    # Order of the training samples.
    shuffle: Shuffle = field(default_factory=Shuffle)
    # Augmentation of the training images.
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_fields(self, "data")
        for name in ("train", "val"):
            url = getattr(self, name)
            if not re.fullmatch(OBJECT_URL, url):
                raise JobError(
                    f"data.{name}: got {redact_url(url)!r}; the prefix of "
                    "a split, s3://BUCKET/PATH, file:///PATH or https://HOST/PATH without a query. "
                    "Name the folder that holds its index.json, or the pattern of its shards."
                )
        if self.train.rstrip("/") == self.val.rstrip("/"):
            raise JobError(
                f"data.val: got {self.val!r}, which is also data.train; the validation split has "
                "its own prefix. Name another one."
            )
        if self.decoder == "nvjpeg" and self.augment.rand_operations:
            raise JobError(
                f"data.decoder: got nvjpeg with data.augment.rand_operations="
                f"{self.augment.rand_operations}; RandAugment runs on the CPU. Write "
                "data.decoder=cpu, or data.augment.rand_operations=0."
            )
        if not self.cache_folder.startswith("/"):
            raise JobError(
                f"data.cache_folder: got {self.cache_folder!r}; an absolute path on every node. "
                "Write one, such as /mnt/nvme/rayception."
            )
        if self.global_batch_size % self.micro_batch_size:
            near = max(1, self.global_batch_size // self.micro_batch_size) * self.micro_batch_size
            raise JobError(
                f"data.global_batch_size: got {self.global_batch_size}; a multiple of "
                f"data.micro_batch_size ({self.micro_batch_size}). Write {near}, or change the "
                "micro-batch."
            )
