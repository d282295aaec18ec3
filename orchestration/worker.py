"""What each rank runs: restore, then batch -> train_step -> log -> checkpoint, to the last step.

Order of operations of one step, and why: the batch is taken first (its wait is the data's, not the
step's); gradients are all-reduced inside `train_step`; the weight average follows the optimizer;
then, on checkpoint steps, batch-norm statistics are averaged over ranks (all ranks take part), the
held-out split is scored (all ranks), and rank 0 copies the state and begins to write it. Every
second or so the ranks speak (one all-reduce): losses, damage, and whether they are to save or to
leave. Nothing is reported to Ray Train: its report is a barrier, and a checkpoint counts by its own
index.
"""

import contextlib
import logging
import time
import warnings
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from datasets.batch import MicroBatch
from datasets.device import on_device
from datasets.loader import TrainLoader
from datasets.manifest import load_manifest
from datasets.store import Store, StoreConfig
from inception.ema import WeightAverage
from inception.evaluate import evaluate
from inception.mix import Mix
from inception.network import build_network
from inception.optim import build_optimizer
from inception.precision import autocast_for, to_device_format
from inception.predictions import Predictions, gather, predict
from inception.statistics import average_bn_statistics
from inception.step import StepResult, train_step
from inception.weights import load_weights, read_weights
from orchestration.checkpoint import TrainState, load_checkpoint, newest_checkpoint
from orchestration.checkpoint_writer import CheckpointWriter
from orchestration.errors import TrainingError
from orchestration.feed import (
    Feed,
    build_cache,
    build_decoder,
    data_position,
)
from orchestration.gauges import watch
from orchestration.load import from_dict
from orchestration.metrics import top1_of
from orchestration.moment import Progress
from orchestration.not_finite import MAX_SKIPPED, name_samples, named_steps
from orchestration.plan import Plan, build_job_architecture, learning_rate_at
from orchestration.progress import Wish
from orchestration.said import save_predictions
from orchestration.steplog import StepLog
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.runs import RunRef
from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What the driver hands to every rank; plain values, no secret among them."""

    job: dict[str, Any]
    plan: Plan
    run: RunRef
    run_url: str
    store: StoreConfig
    board: Any  # the progress actor
    attempt: int  # 1 for the first worker group


def train_loop(config: dict[str, Assignment]) -> None:
    """Entry of Ray Train on each rank. Raises TrainingError, DataError or StoreError."""
    Rank(config["assignment"]).train()


class Rank:
    """One rank of one attempt: its model, its data, its place in the group."""

    def __init__(self, hand: Assignment) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.hand = hand
        self.plan = hand.plan
        self.job = job = from_dict(hand.job)
        self.store = Store(hand.store, build_cache(job))
        self.train_manifest = load_manifest(self.store, job.data.train)
        self.val_manifest = load_manifest(self.store, job.data.val)
        self.position = data_position(job, self.train_manifest)
        # get_device() names cuda:0 wherever the node claims a GPU, so torch is asked first.
        self.device = (
            ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
        )
        self.feed = Feed(
            job=job,
            plan=self.plan,
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            decoder=build_decoder(job, self.device),
        )
        self.autocast = autocast_for(self.device, job.model.precision)
        self.model = build_network(build_job_architecture(job), seed=job.seed)
        to_device_format(self.model, self.device)
        chosen = self._choose_checkpoint()  # (url, state), or None
        if chosen is None and job.model.init_from is not None:
            self._begin_from(job.model.init_from)
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
        # Steps whose loss was no finite number: what an earlier attempt named, this one leaves out.
        self.left_out = self._left_out_steps() if job.loss.not_finite == "skip" else frozenset()
        self.metrics: dict[str, float] = {}  # of the last evaluation
        self.step = 0 if chosen is None else self._restore(*chosen)
        # Running statistics are averaged by us where they are used; DDP must not broadcast them.
        # (torch 2.13 renames the argument; the old name is the one that every version knows.)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.ddp = DistributedDataParallel(
                self.model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.writer: MetricWriter | None = None
        self.checkpoints: CheckpointWriter | None = None
        if self.rank == 0:
            outbox = Outbox(self.store, hand.run_url)
            self.writer = MetricWriter(hand.run, outbox, "rank-0")
            self.checkpoints = CheckpointWriter(
                self.store, hand.run_url, keep=job.checkpoint.keep, settle=self.writer.settle
            )
        hand.board.join.remote(self.rank, ray.get_runtime_context().get_node_id())
        logger.warning(  # so that it stands in the rank's log
            "rank %d of %d on %s begins after step %d",
            *(self.rank, self.world_size, ray.util.get_node_ip_address(), self.step),
        )
        self.began_after = self.step
        node = ray.util.get_node_ip_address()
        self.gauges = None
        if context.get_local_rank() == 0:  # one of each node
            self.gauges = watch(lambda values: hand.board.gauge.remote(node, values))
        self.answer: Any = None  # rank 0's of its last post: what the ranks are to do

    def train(self) -> None:
        """To the last step of the plan, or until the ranks are asked to leave. All ranks walk the
        same steps."""
        try:
            with self.feed.train_loader(self.train_manifest, step=self.step) as loader:
                self._train_steps(loader)
            if self.checkpoints is not None:
                self.checkpoints.wait()
        finally:
            if self.gauges is not None:
                self.gauges.set()
            if self.checkpoints is not None:
                self.checkpoints.close()
            if self.writer is not None and (kept := self.writer.close()):
                logger.warning("MLflow is away; %d metric points wait in the run's outbox", kept)

    def _train_steps(self, loader: TrainLoader) -> None:
        job, plan = self.job, self.plan
        log = StepLog(
            job,
            plan,
            loader,
            self.writer,
            self._keep_names,
            can_skip=job.loss.not_finite == "skip" and len(self.left_out) < MAX_SKIPPED,
        )
        batches = iter(loader)
        while self.step < plan.total_steps:
            mine = next(batches)
            wish = Wish.GO_ON
            if self.step + 1 in self.left_out:
                if len(log):  # what is sent together are steps without a gap
                    wish = self._speak(log)
            else:
                log.add(self._step(mine), tuple(key for batch in mine for key in batch.keys))
            self.step += 1
            is_checkpoint = plan.is_checkpoint_step(self.step, job.checkpoint.every_steps)
            if len(log) and (log.is_due or is_checkpoint):
                wish = self._speak(log)
            if is_checkpoint or wish is not Wish.GO_ON:
                self._checkpoint(log.images_per_second)
                log.resume_clock()
            if wish is Wish.LEAVE:
                return

    def _step(self, mine: list[MicroBatch]) -> StepResult:
        job, plan = self.job, self.plan
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(job, plan, self.step)
        result = train_step(
            self.ddp,
            self.optimizer,
            [on_device(batch, self.device) for batch in mine],
            num_micro_batches=plan.num_micro_batches,
            world_size=self.world_size,
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
        return result

    def _speak(self, log: StepLog) -> Wish:
        """All ranks take part; -> what they are to do, the same on all. Rank 0 hears it as the
        answer to its last post, which has come or is read next time."""
        heard = Wish.GO_ON
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # the driver is going down
                heard = ray.get(self.answer)
        moment, wish = log.send(self.step, heard)
        if self.rank == 0:
            self.answer = self.hand.board.post.remote(self._progress(moment, log))
        return wish

    def _left_out_steps(self) -> frozenset[int]:
        """Rank 0 looks and tells the others, so that all leave out the same."""
        found = [named_steps(self.store, self.hand.run_url) if self.rank == 0 else []]
        dist.broadcast_object_list(found, src=0)
        return frozenset(found[0])

    def _keep_names(self, step: int, keys: tuple[str, ...]) -> str:
        url = self.hand.run_url
        return name_samples(self.store, url, step=step, rank=self.rank, keys=keys)

    def _progress(self, moment: dict[str, float], log: StepLog) -> Progress:
        left = (self.plan.total_steps - self.step) * self.plan.global_batch_size
        return Progress(
            step=self.step,
            total_steps=self.plan.total_steps,
            epoch=self.plan.epoch_at(self.step),
            loss=moment["train/loss"],
            images_per_second=moment["train/images_per_second"],
            data_wait_fraction=moment["train/data_wait_fraction"],
            top1=top1_of(self.metrics),
            attempt=self.hand.attempt,
            ranks=self.world_size,
            eta_s=left / log.images_per_second,
            from_step=self.began_after,
            trained_s=log.trained_s,
            checkpoint_s=self.checkpoints.took_s if self.checkpoints is not None else 0.0,
        )

    def _checkpoint(self, images_per_second: float) -> None:
        """Averages statistics, scores the held-out split at an epoch's end, begins to write.

        All ranks take part; rank 0 alone writes.
        """
        began = time.monotonic()
        average_bn_statistics(self.model)
        if self.average is not None:
            self.average.average_statistics()
        scored_s = 0.0
        said: dict[str, float] = {}
        if self.step in self.plan.epoch_ends:
            is_last = self.step == self.plan.total_steps
            said = self._evaluate("val", is_kept=is_last and self.average is None)
            if self.average is not None:
                with self.average.applied(self.model):
                    said |= self._evaluate("val_ema", is_kept=is_last)
            self.metrics = said
            scored_s = time.monotonic() - began
            if self.writer is not None:
                self.writer.log(self.step, said | {"val/seconds": scored_s})
        if self.checkpoints is not None:
            state = TrainState(
                step=self.step,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                average=self.average.state_dict() if self.average is not None else None,
                data=self.position,
                metrics=said | {"images_per_second": images_per_second},
            )
            self.checkpoints.submit(state)
        if self.writer is not None and self.checkpoints is not None:
            stood_s = time.monotonic() - began - scored_s
            times = {"checkpoint/seconds": stood_s}  # that training stood still
            if self.checkpoints.took_s:
                times["checkpoint/write_seconds"] = self.checkpoints.took_s  # of the one before
            self.writer.log(self.step, times)

    def _evaluate(self, prefix: str, *, is_kept: bool) -> dict[str, float]:
        """Every held-out sample once, all ranks together; percent and mean loss. is_kept: rank 0
        writes what was said of each image, for the pictures at the run's end."""
        parts: list[Predictions] = []

        def keep(batch: MicroBatch, logits: torch.Tensor) -> None:
            p = logits.float().softmax(1)
            parts.append(predict(p, batch.targets, batch.weights, batch.samples, batch.keys))

        on_batch = {"on_batch": keep} if is_kept else {}
        with self.feed.eval_loader(self.val_manifest) as loader:
            scores = evaluate(self.model, loader, self.device, self.autocast, **on_batch)
            skipped = torch.tensor([float(loader.damages.total)], device=self.device)
        scores.all_reduce()
        dist.all_reduce(skipped)
        result = scores.result()
        if result["count"] + float(skipped) != self.plan.val_samples or (
            float(skipped) > self.job.data.max_damaged
        ):
            raise TrainingError(
                f"{self.job.data.val}: got {result['count']:.0f} scored and {float(skipped):.0f} "
                f"damaged samples; the manifest counts {self.plan.val_samples}. Look with "
                "`rayception verify`."
            )
        if is_kept:
            every: list[Any] = [None] * self.world_size
            dist.all_gather_object(every, gather(parts))  # all ranks take part
            if self.rank == 0:
                save_predictions(self.store, self.hand.run_url, gather(every))
        return {
            f"{prefix}/top1": 100 * result["top1"],
            f"{prefix}/top5": 100 * result["top5"],
            f"{prefix}/loss": result["loss"],
        }

    def _begin_from(self, url: str) -> None:
        """A pretrained start; each rank reads the file, as each reads a checkpoint."""
        kept = load_weights(self.model, read_weights(self.store.read(url), url), url)
        if self.rank == 0:
            fresh = f"; {', '.join(kept)} begin anew" if kept else ""
            logger.warning("began from %s%s", url, fresh)

    def _choose_checkpoint(self) -> tuple[str, TrainState] | None:
        """The newest whole checkpoint of this run, if there is one. Rank 0 chooses and tells the
        others, so that all begin at the same step; each reads it."""
        found = newest_checkpoint(self.store, self.hand.run_url) if self.rank == 0 else None
        chosen = [None if found is None else found[0]]
        dist.broadcast_object_list(chosen, src=0)
        url = chosen[0]
        if url is None or found is not None:
            return found
        return url, load_checkpoint(self.store, url)

    def _restore(self, url: str, state: TrainState) -> int:
        """-> finished steps. Raises TrainingError where the checkpoint is of other samples."""
        if state.data != self.position:
            differing = [k for k, v in self.position.items() if state.data.get(k) != v]
            raise TrainingError(
                f"{url}: got another {', '.join(differing)} than the job; a run goes on "
                "over the same samples in the same order. Restore the job's data section."
            )
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        if self.average is not None and state.average is not None:
            self.average.load_state_dict(state.average)
        self.metrics = {key: value for key, value in state.metrics.items() if "/" in key}
        return state.step
