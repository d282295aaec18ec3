"""What training changes on a rank: the network, its optimizer, the average of its weights, and the
number of finished steps. A checkpoint is this state in storage.

Training starts from the run's newest whole checkpoint, else from pretrained weights, else from the
job's seed. All ranks start with the same values, and stay equal.
"""

import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from datasets.loading.batch import MicroBatch
from datasets.loading.device import to_device
from datasets.storage.store import Store
from inception.ema import WeightAverage
from inception.mix import MixConfig
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import autocast_for, to_device_format
from inception.reduction import StepReduction
from inception.step import StepResult, train_step
from inception.tree_sum import TreeSum
from inception.weights import load_weights, read_weights
from orchestration.errors import TrainingError
from orchestration.job.job import Job
from orchestration.job.plan import Plan, learning_rate_at
from orchestration.run.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint

logger = logging.getLogger(__name__)


class TrainState:
    """One rank's state. step: finished steps. metrics: of the last evaluation.

    All ranks take part in every method except `checkpoint`.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        store: Store,
        run_url: str,
        *,
        position: dict[str, Any],
        device: torch.device,
    ) -> None:
        """position: as loaders.data_position; a checkpoint must have the same.

        Raises TrainingError if a checkpoint has another position, ModelError if pretrained weights
        do not fit, DataError, StoreError.
        """
        self._job, self._plan, self._device = job, plan, device
        self._position = position
        self.autocast = autocast_for(device, job.model.precision)
        self.model = build_network(job.model.architecture(), seed=job.seed)
        self.model.set_group_size(job.model.bn_group_size)
        to_device_format(self.model, device)
        newest = _read_newest(store, run_url)
        if newest is None and job.model.init_from is not None:
            self._load_pretrained(store, job.model.init_from)
        if job.model.freeze_until is not None:
            self.model.freeze_until(job.model.freeze_until)
        optim = job.optim
        self.optimizer = build_optimizer(
            self.model,
            name=optim.name,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            decay=optim.decay,
            eps=optim.eps,
        )
        # All ranks get rank 0's weights: machines of several kinds may have drawn others. The
        # average begins with them. Each step sets the same running statistics on all ranks: DDP
        # need not broadcast them. torch 2.13 renames the argument; all supported versions know it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._ddp = DistributedDataParallel(
                self.model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.average = (
            WeightAverage(self.model, decay=optim.average_decay)
            if optim.average_decay is not None
            else None
        )
        self.step = 0
        self.metrics: dict[str, float] = {}
        if newest is not None:
            self._restore(*newest)
        tree = TreeSum.of(plan.num_micro_batches, dist.get_world_size())
        self._reduction = StepReduction(
            self._ddp, tree, dist.get_rank(), is_exact=job.cluster.reduction == "exact"
        )

    def train_on(self, micro_batches: list[MicroBatch]) -> StepResult:
        """One step on this rank's micro-batches: gradients are summed over ranks, the optimizer
        steps, and the weight average is updated."""
        job = self._job
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(job, self._plan, self.step)
        result = train_step(
            self._ddp,
            self.optimizer,
            [to_device(batch, self._device) for batch in micro_batches],
            self._reduction,
            seed=job.seed,
            step=self.step,
            label_smoothing=job.loss.label_smoothing,
            aux_weight=job.loss.side_weight,
            clip_norm=job.optim.clip_norm,
            mix_config=MixConfig(mixup=job.loss.mixup, cutmix=job.loss.cutmix),
            autocast=self.autocast,
        )
        if self.average is not None:
            self.average.update()
        self.step += 1
        return result

    def skip_step(self) -> None:
        """Counts the next step without training."""
        self.step += 1

    def tensors(self) -> list[Tensor]:
        """All that a step changes: weights, statistics, the optimizer's state, the average."""
        optimizer = [v for state in self.optimizer.state.values() for v in state.values()]
        average = self.average.state_dict()["tensors"].values() if self.average is not None else ()
        values = [*self.model.state_dict().values(), *optimizer, *average]
        return [value for value in values if isinstance(value, Tensor)]

    def checkpoint(self, metrics: dict[str, float]) -> Checkpoint:
        """Shares its tensors with the network and the optimizer."""
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=self.average.state_dict() if self.average is not None else None,
            data=self._position,
            metrics=metrics,
        )

    def _load_pretrained(self, store: Store, url: str) -> None:
        """Each rank reads the file, as each reads a checkpoint."""
        fresh = load_weights(self.model, read_weights(store.read(url), url), url)
        if dist.get_rank() == 0:
            rest = f"; initialized anew: {', '.join(fresh)}" if fresh else ""
            logger.warning("loaded weights from %s%s", url, rest)

    def _restore(self, url: str, checkpoint: Checkpoint) -> None:
        """Raises TrainingError if the checkpoint has another position in the data."""
        if checkpoint.data != self._position:
            names = [k for k, v in self._position.items() if checkpoint.data.get(k) != v]
            raise TrainingError(
                f"{url}: got another {', '.join(names)} than the job; a run goes on with the same "
                "samples in the same order. Restore the job's data section."
            )
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.metrics = {key: value for key, value in checkpoint.metrics.items() if "/" in key}
        self.step = checkpoint.step


def _read_newest(store: Store, run_url: str) -> tuple[str, Checkpoint] | None:
    """(URL, state) of the run's newest whole checkpoint. All ranks take part: rank 0 finds it and
    broadcasts its URL, so that all start at the same step; then each reads it."""
    newest = newest_checkpoint(store, run_url) if dist.get_rank() == 0 else None
    urls = [newest[0] if newest is not None else None]
    dist.broadcast_object_list(urls, src=0)
    url = urls[0]
    if url is None or newest is not None:
        return newest
    return url, load_checkpoint(store, url)
