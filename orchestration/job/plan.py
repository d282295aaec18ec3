"""Job + the data's size -> Plan: every derived number, computed once and handed on. Pure.

Nothing downstream recomputes what follows from `world_size`: the driver makes the plan, the
workers and the terminal read it.
"""

from dataclasses import dataclass
from math import ceil

from datasets.loading.share import Share, loader_bytes
from inception.cost import count_cost
from inception.family import Architecture, build_architecture
from inception.schedule import learning_rate, scaled_rate
from orchestration.errors import JobError
from orchestration.job.job import Job

# Forward + backward is about three forward passes; a multiply-add is two operations.
FLOPS_PER_MULTIPLY_ADD = 2
PASSES_PER_STEP = 3
BYTES_PER_PARAMETER = 4


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What the loader's memory depends on: the mean size of a sample in its shard, and how many
    samples the largest shard holds."""

    sample_bytes: float
    shard_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a job means on its cluster and data."""

    world_size: int  # of all nodes; an elastic run may have fewer
    num_nodes: int
    ranks_per_node: int
    train_samples: int
    val_samples: int
    global_batch_size: int
    micro_batch_size: int
    num_micro_batches: int  # of one optimizer step, over all ranks
    max_micro_batches_per_rank: int
    is_even: bool  # every rank works the same number of micro-batches
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    epoch_ends: tuple[int, ...]  # the step after which each epoch's samples have all been seen
    eval_batch_size: int
    loader_workers: int  # processes of a rank that decode for training
    reads: float  # of a byte of the training split in an epoch, over all ranks; 1 is ideal
    loader_bytes: int | None  # of a rank's windows and images; None where shards are not known
    parameters: int  # with the side head
    side_head_parameters: int
    multiply_adds: int  # of one image, forward, without the side head
    training_flops_per_image: int
    training_flops: float  # of the whole job
    gradient_bytes: int  # all-reduced in a step, float32
    checkpoint_bytes: int  # weights, their average and two optimizer moments, float32

    def is_checkpoint_step(self, step: int, every_steps: int | None) -> bool:
        """Whether the state is written after `step` finished steps."""
        return step in self.epoch_ends or bool(every_steps and step % every_steps == 0)

    def epoch_at(self, step: int) -> float:
        """Epochs seen after `step` steps, fractional: the schedule's clock."""
        return step * self.global_batch_size / self.train_samples


def stated_data(job: Job) -> tuple[int, int, ShardShape | None] | None:
    """(train samples, val samples, shape of the training shards where it is known) as the job
    states them; None where they are the manifests' to say."""
    data = job.data
    if data.train_samples is None or data.val_samples is None:
        return None
    shape = None
    if data.train_shard_samples is not None and data.train_sample_bytes is not None:
        shape = ShardShape(data.train_sample_bytes, data.train_shard_samples)
    return data.train_samples, data.val_samples, shape


def build_job_architecture(job: Job) -> Architecture:
    """The network that the job names."""
    model = job.model
    return build_architecture(
        model.name,
        num_classes=model.num_classes,
        input_size=model.input_size,
        width=model.width,
        side_head=model.side_head,
        dropout=model.dropout,
        bn_momentum=model.bn_momentum,
        options=model.options,
    )


def learning_rate_at(job: Job, plan: Plan, step: int) -> float:
    """The rate of step `step` (0 is the first)."""
    schedule = job.schedule
    return learning_rate(
        plan.epoch_at(step),
        name=schedule.name,
        lr=scaled_rate(
            job.optim.lr,
            rule=job.optim.lr_scaling,
            batch_size=plan.global_batch_size,
            reference=job.optim.lr_batch_size,
        ),
        epochs=schedule.epochs,
        decay=schedule.decay,
        every_epochs=schedule.every_epochs,
        warmup_epochs=schedule.warmup_epochs,
        milestones=schedule.milestones,
    )


def _loader_bytes(job: Job, share: Share, train_samples: int, shape: ShardShape) -> int:
    shuffle = job.data.shuffle
    return loader_bytes(
        share,
        num_samples=train_samples,
        shard_samples=shape.shard_samples,
        sample_bytes=shape.sample_bytes,
        lanes=shuffle.lanes,
        pieces=shuffle.pieces,
        slices=shuffle.slices,
        input_size=job.model.input_size,
    )


def count_loader_workers(job: Job) -> int:
    """As stated; else the cores that a rank beside a GPU has over its own, none on a CPU. A GPU
    decoder works in its rank's own process."""
    if job.data.decoder == "nvjpeg":
        return 0
    if job.data.loader_workers is not None:
        return job.data.loader_workers
    return job.cluster.cpus_per_worker - 1 if job.cluster.accelerator.is_gpu else 0


def make_plan(
    job: Job, *, train_samples: int, val_samples: int, shape: ShardShape | None = None
) -> Plan:
    """shape: of the training split's shards, where it is known. Raises JobError where the data's
    true size contradicts the job."""
    for split, stated, found in (
        ("train", job.data.train_samples, train_samples),
        ("val", job.data.val_samples, val_samples),
    ):
        if stated is not None and stated != found:
            raise JobError(
                f"data.{split}_samples: got {stated}, but the manifest of "
                f"{getattr(job.data, split)} counts {found}; a stated number is a promise. "
                f"Write {found}, or name the prefix you meant."
            )
    accelerator = job.cluster.accelerator
    world_size = job.cluster.max_nodes * accelerator.count
    batch = job.data.global_batch_size
    num_micro_batches = batch // job.data.micro_batch_size
    if batch > train_samples:
        raise JobError(
            f"data.global_batch_size: got {batch}; at most the training split's "
            f"{train_samples} samples. Write a smaller batch."
        )
    if job.data.shuffle.lanes > train_samples:
        raise JobError(
            f"data.shuffle.lanes: got {job.data.shuffle.lanes}; at most the training split's "
            f"{train_samples} samples. Write fewer lanes."
        )
    share = Share(
        rank=0,  # works as many micro-batches as any
        world_size=min(world_size, num_micro_batches),
        global_batch_size=batch,
        micro_batch_size=job.data.micro_batch_size,
        parts=max(1, count_loader_workers(job)),
    )
    cost = count_cost(build_job_architecture(job))
    epochs = job.schedule.epochs
    # Rounded up: the last batch runs on into the next epoch, so no sample is left out.
    # (1e-9: an epoch count such as 0.57 must not gain a step by its binary rounding.)
    total_steps = ceil(epochs * train_samples / batch - 1e-9)
    ends = [ceil(e * train_samples / batch) for e in range(1, ceil(epochs))] + [total_steps]
    flops = FLOPS_PER_MULTIPLY_ADD * PASSES_PER_STEP * cost.multiply_adds
    return Plan(
        world_size=world_size,
        num_nodes=job.cluster.max_nodes,
        ranks_per_node=accelerator.count,
        train_samples=train_samples,
        val_samples=val_samples,
        global_batch_size=batch,
        micro_batch_size=job.data.micro_batch_size,
        num_micro_batches=num_micro_batches,
        max_micro_batches_per_rank=ceil(num_micro_batches / world_size),
        is_even=num_micro_batches % world_size == 0,
        steps_per_epoch=train_samples / batch,
        total_steps=total_steps,
        warmup_steps=round(job.schedule.warmup_epochs * train_samples / batch),
        epoch_ends=tuple(ends),
        eval_batch_size=job.data.micro_batch_size,
        loader_workers=count_loader_workers(job),
        reads=share.world_size * share.num_lanes(job.data.shuffle.lanes) / job.data.shuffle.lanes,
        loader_bytes=_loader_bytes(job, share, train_samples, shape) if shape else None,
        parameters=cost.parameters,
        side_head_parameters=cost.side_head_parameters,
        multiply_adds=cost.multiply_adds,
        training_flops_per_image=flops,
        training_flops=float(flops) * total_steps * batch,
        gradient_bytes=BYTES_PER_PARAMETER * cost.parameters,
        checkpoint_bytes=4 * BYTES_PER_PARAMETER * cost.parameters,
    )
