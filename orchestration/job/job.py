"""The job YAML, field by field: with job_data.py, job_recipe.py and job_places.py, its manual.

A job is frozen once it is built. A rule about one field stands in that section's
`__post_init__`, a rule about two sections in `Job`'s; what needs the data's size is in `plan`,
what needs the live cluster in `preflight`. Every mistake raises JobError by the error law.
Nothing here imports torch, ray or mlflow: planning a job costs milliseconds.
"""

import re
from dataclasses import dataclass, field

from orchestration.errors import JobError
from orchestration.job.cluster import LOCAL, CheckpointPolicy, Cluster, Storage, Tracking
from orchestration.job.data import Data
from orchestration.job.recipe import Loss, Model, Optim, Schedule


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
        if self.data.decoder == "nvjpeg" and not accelerator.is_gpu:
            raise JobError(
                f"data.decoder: got nvjpeg with cluster.accelerators "
                f"{self.cluster.accelerators}; it decodes on a GPU. Write data.decoder=cpu."
            )
        if self.cluster.address == LOCAL and self.cluster.max_nodes > 1:
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
        world_size = self.cluster.max_nodes * max(one.count for one in self.cluster.choices)
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
