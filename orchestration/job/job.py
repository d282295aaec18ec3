"""The job YAML, field by field; with data.py, recipe.py and cluster.py it is the reference manual.

The comment above a field is its documentation, its metadata its rule. A job is frozen once it is
built. Other rules about one section are checked in its `__post_init__`, those about two sections in
`Job`'s; `plan` checks what needs the size of the data, `preflight` what needs the live cluster.
Every mistake raises JobError in the form of the error law. Nothing here imports torch, ray or
mlflow: planning a job takes milliseconds.
"""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL, CheckpointPolicy, Cluster, Storage, Tracking
from orchestration.job.data import Data
from orchestration.job.recipe import Loss, Model, Optim, Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One training job."""

    # 1 to 63 lower-case letters, digits and inner hyphens; it names folders and cluster objects.
    name: str
    # The two splits, and how they become batches.
    data: Data
    # The network.
    model: Model
    # The learning rate over the epochs.
    schedule: Schedule
    # Determines initial weights, order, augmentation and dropout; 0 to 2^63 - 1.
    seed: int = 0
    # Where the job runs, and on which hardware.
    cluster: Cluster = field(default_factory=Cluster)
    # The object store behind every s3:// URL of the job.
    storage: Storage = field(default_factory=Storage)
    # The training loss.
    loss: Loss = field(default_factory=Loss)
    # The optimizer, and the running average of the weights.
    optim: Optim = field(default_factory=Optim)
    # Where checkpoints go, and how often they are written.
    checkpoint: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    # MLflow.
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", self.name):
            raise JobError(
                f"name: got {self.name!r}; lower-case letters, digits and inner hyphens, at most "
                "63 (it names folders and cluster objects). Write such a name."
            )
        if not 0 <= self.seed < 2**63:
            raise JobError(f"seed: got {self.seed}; 0 to 2^63 - 1. Write a number in that range.")
        cluster, data = self.cluster, self.data
        if data.decoder == "nvjpeg" and not cluster.accelerator.is_gpu:
            raise JobError(
                f"data.decoder: got nvjpeg with cluster.accelerators {cluster.accelerators}; it "
                "decodes on a GPU. Write data.decoder=cpu."
            )
        if cluster.address == LOCAL and cluster.max_nodes > 1:
            raise JobError(
                f"cluster.num_nodes: got {cluster.num_nodes} with cluster.address local; this "
                "machine is one node. Write 1, or run on a Ray cluster (cluster.address=auto)."
            )
        if cluster.address != LOCAL:
            for name, value in (
                ("storage.endpoint_url", self.storage.endpoint_url),
                ("tracking.uri", self.tracking.uri),
            ):
                if value == LOCAL:
                    raise JobError(
                        f"{name}: got local with cluster.address {cluster.address}; the embedded "
                        "stack listens on this machine's loopback, where other nodes cannot reach "
                        "it. Name a service that every node can reach."
                    )
        group = self.model.bn_group_size
        if group is not None and data.micro_batch_size % group:
            raise JobError(
                f"model.bn_group_size: got {group} with data.micro_batch_size "
                f"{data.micro_batch_size}; a micro-batch is whole groups. Write a divisor of "
                f"{data.micro_batch_size}, or make data.micro_batch_size a multiple of {group}."
            )
        num_micro_batches = data.global_batch_size // data.micro_batch_size
        world_size = cluster.max_nodes * max(choice.count for choice in cluster.choices)
        if num_micro_batches < world_size:
            raise JobError(
                f"data.global_batch_size: got {data.global_batch_size}, which is "
                f"{num_micro_batches} micro-batches of {data.micro_batch_size} for {world_size} "
                f"ranks; each rank needs at least one. Write {world_size * data.micro_batch_size}, "
                "a smaller data.micro_batch_size, or fewer nodes."
            )

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment."""
        return self.tracking.experiment or self.name

    def local_services(self) -> frozenset[str]:
        """The parts of the embedded stack (s3, mlflow, ray) that this job uses."""
        addresses = {
            "s3": self.storage.endpoint_url,
            "mlflow": self.tracking.uri,
            "ray": self.cluster.address,
        }
        return frozenset(part for part, address in addresses.items() if address == LOCAL)
