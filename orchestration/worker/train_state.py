"""What training changes on a rank, and how it begins: the network, its optimizer, the average of
its weights, the steps that are done. A checkpoint is this, written down.

It begins from the newest whole checkpoint of its run, else from pretrained weights, else from the
job's seed; all ranks alike, and so they stay: the same numbers on each.
"""

import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from datasets.loading.batch import MicroBatch
from datasets.loading.device import on_device
from datasets.storage.store import Store
from inception.ema import WeightAverage
from inception.mix import Mix
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import autocast_for, to_device_format
from inception.statistics import average_bn_statistics
from inception.step import StepResult, train_step
from inception.weights import load_weights, read_weights
from orchestration.errors import TrainingError
from orchestration.job.job import Job
from orchestration.job.plan import Plan, build_job_architecture, learning_rate_at
from orchestration.run.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint

logger = logging.getLogger(__name__)


class TrainState:
    """One rank's. step: steps that are done. metrics: of the last evaluation.

    All ranks take part in every method but `state`.
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
        """position: the place in the data that a checkpoint must share (feed.data_position).

        Raises TrainingError: a checkpoint of other samples; ModelError: weights that do not fit;
        DataError, StoreError.
        """
        self._job, self._plan, self._device = job, plan, device
        self._position = position
        self.autocast = autocast_for(device, job.model.precision)
        self.model = build_network(build_job_architecture(job), seed=job.seed)
        to_device_format(self.model, device)
        chosen = _choose_checkpoint(store, run_url)
        if chosen is None and job.model.init_from is not None:
            self._begin_from(store, job.model.init_from)
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
        self.average = (
            WeightAverage(self.model, decay=optim.average_decay)
            if optim.average_decay is not None
            else None
        )
        self.step = 0
        self.metrics: dict[str, float] = {}
        if chosen is not None:
            self._restore(*chosen)
        # Running statistics are averaged by us where they are used; DDP must not broadcast them.
        # (torch 2.13 renames the argument; the old name is the one that every version knows.)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._ddp = DistributedDataParallel(
                self.model, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def train_on(self, mine: list[MicroBatch]) -> StepResult:
        """The next step, on this rank's micro-batches of it; gradients are all-reduced inside, the
        weight average follows the optimizer."""
        job, plan = self._job, self._plan
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(job, plan, self.step)
        result = train_step(
            self._ddp,
            self.optimizer,
            [on_device(batch, self._device) for batch in mine],
            num_micro_batches=plan.num_micro_batches,
            world_size=dist.get_world_size(),
            seed=job.seed,
            step=self.step,
            label_smoothing=job.loss.label_smoothing,
            side_weight=job.loss.side_weight,
            clip_norm=job.optim.clip_norm,
            how_mixed=Mix(mixup=job.loss.mixup, cutmix=job.loss.cutmix),
            autocast=self.autocast,
        )
        if self.average is not None:
            self.average.update()
        self.step += 1
        return result

    def skip_step(self) -> None:
        """The next step is not worked, but counts."""
        self.step += 1

    def average_statistics(self) -> None:
        """Batch norm's running statistics, averaged over ranks: before they are used or kept."""
        average_bn_statistics(self.model)
        if self.average is not None:
            self.average.average_statistics()

    def checkpoint(self, metrics: dict[str, float]) -> Checkpoint:
        """What a checkpoint holds; the tensors are the network's own. metrics: that stand in it."""
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            average=self.average.state_dict() if self.average is not None else None,
            data=self._position,
            metrics=metrics,
        )

    def _begin_from(self, store: Store, url: str) -> None:
        """A pretrained start; each rank reads the file, as each reads a checkpoint."""
        kept = load_weights(self.model, read_weights(store.read(url), url), url)
        if dist.get_rank() == 0:
            fresh = f"; {', '.join(kept)} begin anew" if kept else ""
            logger.warning("began from %s%s", url, fresh)

    def _restore(self, url: str, checkpoint: Checkpoint) -> None:
        """Raises TrainingError where the checkpoint is of other samples."""
        if checkpoint.data != self._position:
            differing = [k for k, v in self._position.items() if checkpoint.data.get(k) != v]
            raise TrainingError(
                f"{url}: got another {', '.join(differing)} than the job; a run goes on "
                "over the same samples in the same order. Restore the job's data section."
            )
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.metrics = {key: value for key, value in checkpoint.metrics.items() if "/" in key}
        self.step = checkpoint.step


def _choose_checkpoint(store: Store, run_url: str) -> tuple[str, Checkpoint] | None:
    """(URL, state) of the newest whole checkpoint of the run, if there is one. Rank 0 chooses and
    tells the others, so that all begin at the same step; each reads it."""
    found = newest_checkpoint(store, run_url) if dist.get_rank() == 0 else None
    chosen = [None if found is None else found[0]]
    dist.broadcast_object_list(chosen, src=0)
    url = chosen[0]
    if url is None or found is not None:
        return found
    return url, load_checkpoint(store, url)
