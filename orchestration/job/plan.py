"""Job + the size of its data -> Plan: every derived number, computed once. Pure.

Nothing downstream recomputes what follows from `world_size`: the driver makes the plan, workers
and the terminal read it.
"""

from dataclasses import asdict, dataclass
from math import ceil

from datasets.loading.share import Share, loader_bytes
from inception.cost import count_cost
from inception.schedule import learning_rate, scaled_rate
from inception.tree_sum import TreeSum
from orchestration.errors import JobError
from orchestration.job.job import Job


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What the loader's memory depends on: the mean bytes of a sample in its shard, and the number
    of samples in the largest shard."""

    sample_bytes: float
    shard_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a job amounts to on its cluster and data."""

    world_size: int  # with all nodes; an elastic run may have fewer ranks
    num_nodes: int
    ranks_per_node: int
    train_samples: int
    val_samples: int
    global_batch_size: int
    micro_batch_size: int
    num_micro_batches: int  # per optimizer step, over all ranks
    max_micro_batches_per_rank: int
    is_even: bool  # all ranks process the same number of micro-batches
    steps_per_epoch: float
    total_steps: int
    warmup_steps: int
    epoch_ends: tuple[int, ...]  # by epoch, the step after which all its samples have been seen
    eval_batch_size: int
    loader_workers: int  # decoding processes per rank for training
    reads: float  # times that all ranks together read a byte of the training split per epoch
    loader_bytes: int | None  # a rank's windows and images; None if the shards are not known
    parameters: int  # with the side head
    side_head_parameters: int
    multiply_adds: int  # per image, forward, without the side head
    activation_bytes: int  # of a pass of micro_batch_size images, float32
    training_flops_per_image: int
    training_flops: float  # of the whole job
    gradient_bytes: int  # float32
    gradient_sums: int  # that a rank holds at once, at most
    partial_sums: int  # of gradients that a rank sends each step
    checkpoint_bytes: int  # weights, their average and two optimizer moments, float32

    def is_checkpoint_step(self, step: int, every_steps: int | None) -> bool:
        """Whether a checkpoint is written after `step` finished steps."""
        return step in self.epoch_ends or bool(every_steps and step % every_steps == 0)

    def epoch_at(self, step: int) -> float:
        """Epochs seen after `step` steps, with a fraction: the schedule depends on it."""
        return step * self.global_batch_size / self.train_samples


def data_from_job(job: Job) -> tuple[int, int, ShardShape | None] | None:
    """(train samples, val samples, shape of the training shards if it is stated), or None if the
    job leaves the number of samples to the manifests."""
    data = job.data
    if data.train_samples is None or data.val_samples is None:
        return None
    shape = None
    if data.train_shard_samples is not None and data.train_sample_bytes is not None:
        shape = ShardShape(data.train_sample_bytes, data.train_shard_samples)
    return data.train_samples, data.val_samples, shape


def learning_rate_at(job: Job, plan: Plan, step: int) -> float:
    """The learning rate of step `step` (0 is the first)."""
    optim = job.optim
    peak = scaled_rate(
        optim.lr,
        rule=optim.lr_scaling,
        batch_size=plan.global_batch_size,
        reference=optim.lr_batch_size,
    )
    return learning_rate(plan.epoch_at(step), lr=peak, **asdict(job.schedule))


def make_plan(
    job: Job, *, train_samples: int, val_samples: int, shape: ShardShape | None = None
) -> Plan:
    """shape: of the training split's shards, if known. Raises JobError if the data's actual size
    contradicts the job."""
    _check_data(job, train_samples, val_samples)
    data, accelerator = job.data, job.cluster.accelerator
    batch = data.global_batch_size
    world_size = job.cluster.max_nodes * accelerator.count
    num_micro_batches = batch // data.micro_batch_size
    num_workers = _loader_workers(job)
    share = Share(
        rank=0,  # no rank has more micro-batches
        world_size=min(world_size, num_micro_batches),
        global_batch_size=batch,
        micro_batch_size=data.micro_batch_size,
        parts=max(1, num_workers),
    )
    tree = TreeSum.of(num_micro_batches, world_size)
    is_exact = job.cluster.reduction == "exact"  # rank 0 has as many micro-batches as any
    memory = None
    if shape is not None:
        memory = loader_bytes(
            share,
            num_samples=train_samples,
            input_size=job.model.input_size,
            **asdict(shape),
            **asdict(data.shuffle),
        )
    cost = count_cost(job.model.architecture())
    epochs = job.schedule.epochs
    # Rounded up: the last batch runs on into the next epoch, so no sample is left out.
    # (1e-9: an epoch count such as 0.57 must not gain a step by its binary rounding.)
    total_steps = ceil(epochs * train_samples / batch - 1e-9)
    ends = [ceil(e * train_samples / batch) for e in range(1, ceil(epochs))] + [total_steps]
    # A multiply-add is two operations; forward + backward is about three forward passes.
    flops = 2 * 3 * cost.multiply_adds
    float32_bytes = 4 * cost.parameters
    return Plan(
        world_size=world_size,
        num_nodes=job.cluster.max_nodes,
        ranks_per_node=accelerator.count,
        train_samples=train_samples,
        val_samples=val_samples,
        global_batch_size=batch,
        micro_batch_size=data.micro_batch_size,
        num_micro_batches=num_micro_batches,
        max_micro_batches_per_rank=ceil(num_micro_batches / world_size),
        is_even=num_micro_batches % world_size == 0,
        steps_per_epoch=train_samples / batch,
        total_steps=total_steps,
        warmup_steps=round(job.schedule.warmup_epochs * train_samples / batch),
        epoch_ends=tuple(ends),
        eval_batch_size=data.micro_batch_size,
        loader_workers=num_workers,
        reads=share.world_size * share.num_lanes(data.shuffle.lanes) / data.shuffle.lanes,
        loader_bytes=memory,
        parameters=cost.parameters,
        side_head_parameters=cost.aux_head_parameters,
        multiply_adds=cost.multiply_adds,
        activation_bytes=cost.activation_bytes * data.micro_batch_size,
        training_flops_per_image=flops,
        training_flops=float(flops) * total_steps * batch,
        gradient_bytes=float32_bytes,
        gradient_sums=tree.max_sums(0) if is_exact else min(2, len(tree.order(0))),
        partial_sums=len(tree.parts[0]) if is_exact else 1,
        checkpoint_bytes=4 * float32_bytes,
    )


def _check_data(job: Job, train_samples: int, val_samples: int) -> None:
    data = job.data
    for split, url, stated, actual in (
        ("train", data.train, data.train_samples, train_samples),
        ("val", data.val, data.val_samples, val_samples),
    ):
        if stated is not None and stated != actual:
            raise JobError(
                f"data.{split}_samples: got {stated}, but the manifest of {url} counts {actual}; "
                f"a stated number must match. Write {actual}, or name the prefix you meant."
            )
    for field, value in (
        ("global_batch_size", data.global_batch_size),
        ("shuffle.lanes", data.shuffle.lanes),
    ):
        if value > train_samples:
            raise JobError(
                f"data.{field}: got {value}; at most the training split's {train_samples} samples. "
                "Write a smaller number."
            )


def _loader_workers(job: Job) -> int:
    """As stated; otherwise a GPU rank's cores but one, and none on a CPU. A GPU decoder works in
    its rank's own process."""
    if job.data.decoder == "nvjpeg":
        return 0
    if job.data.loader_workers is not None:
        return job.data.loader_workers
    return job.cluster.cpus_per_worker - 1 if job.cluster.accelerator.is_gpu else 0
