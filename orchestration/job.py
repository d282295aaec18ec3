"""The job YAML, field by field: this file is its reference manual.

A job is frozen once it is built. A rule about one field stands in that section's
`__post_init__`, a rule about two sections in `Job`'s; what needs the data's size is in `plan`,
what needs the live cluster in `preflight`. Every mistake raises JobError by the error law.
This module imports neither torch, ray nor mlflow: planning a job costs milliseconds.
"""

import re
from dataclasses import dataclass, field

from inception.family import MODEL_NAMES, build_architecture
from inception.recipes import OPTIMIZER_NAMES, PRECISIONS, SCHEDULE_NAMES
from orchestration.accelerators import Accelerator, parse_accelerator
from orchestration.errors import JobError
from orchestration.rules import above, at_least, choose, within, without_userinfo

LOCAL = "local"
SOURCES = ("digits",)
ADDRESSING = ("auto", "path", "virtual")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Where the job runs and on what."""

    # `local`: a Ray of this machine, started for the run. `auto`: the Ray cluster of which this
    # machine is a node (RAY_ADDRESS, or the one that `ray start` made).
    address: str = LOCAL
    # TYPE:COUNT of one node, e.g. H100:8; CPU:2 is two ranks without a GPU. One rank a device.
    accelerators: str = "CPU:2"
    # Nodes; the number of ranks (world size) is num_nodes x COUNT.
    num_nodes: int = 1
    # CPU cores of one rank: its compute threads on a CPU, its decoding threads beside a GPU.
    cpus_per_worker: int = 1
    # How often a dead worker or node may be replaced, each time from the last checkpoint.
    max_failures: int = 3

    def __post_init__(self) -> None:
        parse_accelerator(self.accelerators)
        choose("cluster.address", self.address, (LOCAL, "auto"))
        at_least("cluster.num_nodes", self.num_nodes, 1)
        at_least("cluster.cpus_per_worker", self.cpus_per_worker, 1)
        at_least("cluster.max_failures", self.max_failures, 0)

    @property
    def accelerator(self) -> Accelerator:
        return parse_accelerator(self.accelerators)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """The object store behind every s3:// URL of the job. Credentials are never written here:
    they come from the standard chain (AWS_ACCESS_KEY_ID ..., profiles, instance roles)."""

    # `local`: the embedded store. A URL: an S3-compatible service. Left out: AWS, or what
    # AWS_ENDPOINT_URL says.
    endpoint_url: str | None = None
    region: str | None = None
    # Read public buckets without credentials.
    anonymous: bool = False
    # How a bucket is named in a request: in the path, in the host name, or as botocore decides.
    addressing: str = "auto"

    def __post_init__(self) -> None:
        choose("storage.addressing", self.addressing, ADDRESSING)
        url = self.endpoint_url
        if url not in (None, LOCAL) and not re.match(r"https?://[^/\s@]+(:\d+)?/?$", str(url)):
            raise JobError(
                f"storage.endpoint_url: got {without_userinfo(str(url))!r}; `local`, or a URL "
                "such as https://s3.example.org:9000 without path and without credentials. "
                "Write it so, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )


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
    """Random-resized crop and flip of a training image, keyed by (seed, epoch, sample)."""

    # Smallest and largest share of the image's area, and width/height ratio, of the crop.
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 1.3333)
    # Probability of a mirrored image.
    flip: float = 0.5

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The two splits, and how they become batches."""

    # The prefix (s3://bucket/path or file:///path) that holds the split's shards and index.json.
    train: str
    val: str
    # Pack this data set into the two prefixes where they hold none yet: digits (scikit-learn's
    # 1,797 handwritten digits, 8x8 pixels, split 80/20).
    source: str | None = None
    # Samples of each split, so that `plan` needs no storage. Left out, they are read from the
    # manifests; stated, a manifest that differs stops the run.
    train_samples: int | None = None
    val_samples: int | None = None
    # Samples of one optimizer step over all ranks.
    global_batch_size: int = 256
    # Samples that batch norm sees together (the paper trained with 32 a replica). The batch is a
    # mean over micro-batches of this size, which is why the loss does not depend on the cluster.
    micro_batch_size: int = 32
    # Decoding threads of one rank.
    loader_workers: int = 1
    # Share of the shorter side that the central square of an evaluation image takes.
    eval_crop: float = 0.875
    shuffle: Shuffle = field(default_factory=Shuffle)
    augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            url = getattr(self, name)
            if not re.match(r"(s3://[^/]+/.+|file:///.+)", url):
                raise JobError(
                    f"data.{name}: got {url!r}; the prefix of a split, s3://BUCKET/PATH or "
                    "file:///PATH. Name the folder that holds its index.json."
                )
        if self.train.rstrip("/") == self.val.rstrip("/"):
            raise JobError(
                f"data.val: got {self.val!r}, which is data.train too; the held-out split has "
                "its own prefix. Name another one."
            )
        if self.source is not None:
            choose("data.source", self.source, SOURCES)
        for name in ("train_samples", "val_samples"):
            if getattr(self, name) is not None:
                at_least(f"data.{name}", getattr(self, name), 1)
        at_least("data.global_batch_size", self.global_batch_size, 1)
        at_least("data.micro_batch_size", self.micro_batch_size, 2)
        at_least("data.loader_workers", self.loader_workers, 1)
        within("data.eval_crop", self.eval_crop, 0.01, 1.0)
        if self.global_batch_size % self.micro_batch_size:
            near = max(1, self.global_batch_size // self.micro_batch_size) * self.micro_batch_size
            raise JobError(
                f"data.global_batch_size: got {self.global_batch_size}; a multiple of "
                f"data.micro_batch_size ({self.micro_batch_size}). Write {near}, or change the "
                "micro-batch."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The network. Its state dict has torchvision's names."""

    num_classes: int
    name: str = "inception_v3"
    # Pixels of a side of the square input.
    input_size: int = 299
    # Scales every layer's channels; 1.0 is the published network.
    width: float = 1.0
    side_head: bool = True
    dropout: float = 0.2
    # torch's sense: the share of the new batch in the running statistics (TensorFlow's decay
    # 0.9 is 0.1 here). 0.0003 suits long runs only.
    bn_momentum: float = 0.1
    # `auto`: bfloat16 where the device computes it fast, else float32.
    precision: str = "auto"

    def __post_init__(self) -> None:
        choose("model.name", self.name, MODEL_NAMES)
        choose("model.precision", self.precision, PRECISIONS)
        at_least("model.num_classes", self.num_classes, 2)
        within("model.dropout", self.dropout, 0.0, 0.99)
        within("model.bn_momentum", self.bn_momentum, 1e-6, 1.0)
        within("model.width", self.width, 0.01, 8.0)
        # The description knows its own smallest input, and says so by the error law.
        build_architecture(
            self.name,
            num_classes=self.num_classes,
            input_size=self.input_size,
            width=self.width,
            side_head=self.side_head,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    label_smoothing: float = 0.1
    # Weight of the side head's loss beside the main one (TensorFlow: 0.4).
    side_weight: float = 0.4

    def __post_init__(self) -> None:
        within("loss.label_smoothing", self.label_smoothing, 0.0, 0.99)
        within("loss.side_weight", self.side_weight, 0.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer. rmsprop_tf is TensorFlow's RMSProp, which is not torch's."""

    name: str = "rmsprop_tf"
    lr: float = 0.045
    momentum: float = 0.9
    # Decay of the mean square (rmsprop_tf) and the term under its root.
    decay: float = 0.9
    eps: float = 1.0
    # On weights of convolutions and fully connected layers only.
    weight_decay: float = 4e-5
    # Largest global norm of the gradient; left out, it is not clipped.
    clip_norm: float | None = None
    # Decay of the running average of the weights; left out, none is kept.
    average_decay: float | None = 0.9999

    def __post_init__(self) -> None:
        choose("optim.name", self.name, OPTIMIZER_NAMES)
        above("optim.lr", self.lr, 0.0)
        within("optim.momentum", self.momentum, 0.0, 0.9999)
        within("optim.decay", self.decay, 0.0, 0.9999)
        above("optim.eps", self.eps, 0.0)
        within("optim.weight_decay", self.weight_decay, 0.0, 1.0)
        if self.clip_norm is not None:
            above("optim.clip_norm", self.clip_norm, 0.0)
        if self.average_decay is not None:
            within("optim.average_decay", self.average_decay, 0.0, 0.999999)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The learning rate over the epochs: linear warm-up, then `name`."""

    epochs: float
    # constant, staircase (x `decay` every `every_epochs`) or cosine (to zero).
    name: str = "staircase"
    decay: float = 0.94
    every_epochs: float = 2.0
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        choose("schedule.name", self.name, SCHEDULE_NAMES)
        above("schedule.epochs", self.epochs, 0.0)
        within("schedule.decay", self.decay, 1e-6, 1.0)
        above("schedule.every_epochs", self.every_epochs, 0.0)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise JobError(
                f"schedule.warmup_epochs: got {self.warmup_epochs}; from 0 to less than "
                f"schedule.epochs ({self.epochs}). Write a smaller number."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPolicy:
    """Where the run's state lies, and how often it is written (at each epoch's end anyway)."""

    storage: str = "s3://runs"
    every_steps: int | None = None
    # How many of the newest checkpoints stay.
    keep: int = 3

    def __post_init__(self) -> None:
        if not re.match(r"(s3://[^/]+|file:///.+)", self.storage):
            raise JobError(
                f"checkpoint.storage: got {self.storage!r}; s3://BUCKET[/PATH] or file:///PATH. "
                "Name a place that every node can reach."
            )
        if self.every_steps is not None:
            at_least("checkpoint.every_steps", self.every_steps, 1)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """MLflow. User name and password come from MLFLOW_TRACKING_USERNAME and ..._PASSWORD."""

    # `local`: the embedded server. Else the URL of an MLflow tracking server.
    uri: str = LOCAL
    # The experiment's name; left out, the job's.
    experiment: str | None = None
    # Metrics of every step are sent in groups of this many steps.
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        if self.uri != LOCAL and not re.match(r"https?://[^\s/@]+(/\S*)?$", self.uri):
            raise JobError(
                f"tracking.uri: got {without_userinfo(self.uri)!r}; `local`, or the http(s) URL "
                "of an MLflow server without credentials in it. Write it so, and set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it asks for them."
            )
        at_least("tracking.log_every_steps", self.log_every_steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training job. `data`, `model.num_classes` and `schedule.epochs` have no default."""

    name: str
    data: Data
    model: Model
    schedule: Schedule
    # Decides initial weights, order, augmentation and dropout.
    seed: int = 0
    cluster: Cluster = field(default_factory=Cluster)
    storage: Storage = field(default_factory=Storage)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.name):
            raise JobError(
                f"name: got {self.name!r}; lower-case letters, digits and inner hyphens, at most "
                "63 (it names folders and cluster objects). Write such a name."
            )
        if not 0 <= self.seed < 2**63:
            raise JobError(f"seed: got {self.seed}; 0 to 2^63 - 1. Write a number in that range.")
        accelerator = self.cluster.accelerator
        if self.cluster.address == LOCAL and self.cluster.num_nodes > 1:
            raise JobError(
                f"cluster.num_nodes: got {self.cluster.num_nodes} with cluster.address local; "
                "this machine is one node. Write 1, or run on a Ray cluster "
                "(cluster.address=auto)."
            )
        if self.cluster.address != LOCAL:
            for name, value in (
                ("storage.endpoint_url", self.storage.endpoint_url),
                ("tracking.uri", self.tracking.uri),
            ):
                if value == LOCAL:
                    raise JobError(
                        f"{name}: got local with cluster.address {self.cluster.address}; the "
                        "embedded stack listens on this machine's loopback, where other nodes "
                        "cannot reach it. Name a service that every node reaches."
                    )
        num_micro_batches = self.data.global_batch_size // self.data.micro_batch_size
        world_size = self.cluster.num_nodes * accelerator.count
        if num_micro_batches < world_size:
            raise JobError(
                f"data.global_batch_size: got {self.data.global_batch_size}, which is "
                f"{num_micro_batches} micro-batches of {self.data.micro_batch_size} for "
                f"{world_size} ranks; each rank needs at least one. Write "
                f"{world_size * self.data.micro_batch_size}, a smaller data.micro_batch_size, or "
                "fewer nodes."
            )

    @property
    def experiment(self) -> str:
        return self.tracking.experiment or self.name

    def uses(self) -> frozenset[str]:
        """The parts of the embedded stack that this job calls `local`: s3, mlflow, ray."""
        return frozenset(
            part
            for part, value in (
                ("s3", self.storage.endpoint_url),
                ("mlflow", self.tracking.uri),
                ("ray", self.cluster.address),
            )
            if value == LOCAL
        )
