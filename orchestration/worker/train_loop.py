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
from typing import TYPE_CHECKING, Any

import ray.train
import torch
import torch.distributed as dist

from datasets.loading.batch import MicroBatch
from datasets.loading.loader import TrainLoader
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from inception.evaluate import evaluate
from inception.predictions import Predictions, gather, predict
from orchestration.errors import TrainingError
from orchestration.job.load import from_dict
from orchestration.run.metrics import top1_of
from orchestration.run.predictions_file import save_predictions
from orchestration.run.progress import Progress
from orchestration.tracking.outbox import Outbox
from orchestration.worker.checkpoint_writer import CheckpointWriter
from orchestration.worker.final_network import write_network
from orchestration.worker.loaders import (
    Loaders,
    build_cache,
    build_decoder,
    data_position,
)
from orchestration.worker.not_finite import MAX_SKIPPED, record_samples, recorded_steps
from orchestration.worker.process_group import rank_device
from orchestration.worker.progress_actor import Command
from orchestration.worker.step_metrics import StepMetrics
from orchestration.worker.system_metrics import start_sampling
from orchestration.worker.train_state import TrainState
from orchestration.worker.worker_config import WorkerConfig

if TYPE_CHECKING:
    from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)


class Rank:
    """One rank of one attempt: its learner, its data, its place in the group."""

    def __init__(self, config: WorkerConfig) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.config = config
        self.plan = config.plan
        self.job = job = from_dict(config.job)
        self.store = Store(config.store, build_cache(job))
        self.train_manifest = load_manifest(self.store, job.data.train)
        self.val_manifest = load_manifest(self.store, job.data.val)
        self.device = rank_device()
        self.loaders = Loaders(
            job=job,
            plan=self.plan,
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            decoder=build_decoder(job, self.device),
        )
        self.state = TrainState(
            job,
            self.plan,
            self.store,
            config.run_url,
            position=data_position(job, self.train_manifest),
            device=self.device,
        )
        # Steps whose loss was no finite number: what an earlier attempt named, this one leaves out.
        self.skipped_steps = self._skipped_steps() if job.loss.not_finite == "skip" else frozenset()
        self.writer: MetricWriter | None = None
        self.checkpoints: CheckpointWriter | None = None
        if self.rank == 0:
            # MLflow's client costs a second of import, and no other rank needs it.
            from orchestration.tracking import writer

            outbox = Outbox(self.store, config.run_url)
            self.writer = writer.MetricWriter(config.run, outbox, "rank-0")
            self.checkpoints = CheckpointWriter(
                self.store, config.run_url, keep=job.checkpoint.keep, settle=self.writer.settle
            )
        config.progress_actor.join.remote(self.rank, ray.get_runtime_context().get_node_id())
        logger.warning(  # so that it stands in the rank's log
            "rank %d of %d on %s begins after step %d",
            *(self.rank, self.world_size, ray.util.get_node_ip_address(), self.state.step),
        )
        self.began_after = self.state.step
        node = ray.util.get_node_ip_address()
        self.sampling = None
        if context.get_local_rank() == 0:  # one of each node
            self.sampling = start_sampling(
                lambda values: config.progress_actor.add_system_metrics.remote(node, values)
            )
        self.moment: dict[str, float] = {}  # what the ranks last said of themselves
        self.answer: Any = None  # rank 0's of its last post: what the ranks are to do

    def train(self) -> None:
        """To the last step of the plan, or until the ranks are asked to leave. All ranks walk the
        same steps."""
        try:
            with self.loaders.train_loader(self.train_manifest, step=self.state.step) as loader:
                self._train_steps(loader)
            if self.checkpoints is not None:
                self.checkpoints.wait()
                if self.state.step == self.plan.total_steps:
                    self._write_network()
        finally:
            if self.sampling is not None:
                self.sampling.set()
            if self.checkpoints is not None:
                self.checkpoints.close()
            if self.writer is not None and (kept := self.writer.close()):
                logger.warning("MLflow is away; %d metric points wait in the run's outbox", kept)

    def _write_network(self) -> None:
        """All steps are done and kept: what fails here is no reason to train again. The driver
        makes the file of the checkpoint then, and says what is wrong."""
        try:
            write_network(self.job, self.store, self.config.run_url, self.state.checkpoint({}))
        except Exception as error:
            logger.warning("the final network is left to the driver: %s", error)

    def _train_steps(self, loader: TrainLoader) -> None:
        job, plan, state = self.job, self.plan, self.state
        log = StepMetrics(
            job,
            plan,
            loader,
            self.writer,
            self._record_samples,
            can_skip=job.loss.not_finite == "skip" and len(self.skipped_steps) < MAX_SKIPPED,
        )
        batches = iter(loader)
        while state.step < plan.total_steps:
            mine = next(batches)
            command = Command.CONTINUE
            if state.step + 1 in self.skipped_steps:
                if len(log):  # what is sent together are steps without a gap
                    command = self._sync_metrics(log)
                state.skip_step()
            else:
                log.add(state.train_on(mine), tuple(key for batch in mine for key in batch.keys))
            is_checkpoint = plan.is_checkpoint_step(state.step, job.checkpoint.every_steps)
            if len(log) and (log.is_due or is_checkpoint):
                command = self._sync_metrics(log)
            if is_checkpoint or command is not Command.CONTINUE:
                self._checkpoint(log.images_per_second)
                if self.rank == 0 and self.moment and state.step in plan.epoch_ends:
                    self.config.progress_actor.show.remote(self._progress(log, is_evaluated=True))
                log.resume_clock()
            if command is Command.STOP:
                return

    def _sync_metrics(self, log: StepMetrics) -> Command:
        """All ranks take part; -> what they are to do, the same on all. Rank 0 hears it as the
        answer to its last post, which has come or is read next time."""
        heard = Command.CONTINUE
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            with contextlib.suppress(ray.exceptions.RayError):  # the driver is going down
                heard = ray.get(self.answer)
        self.moment, command = log.sync(self.state.step, heard)
        if self.rank == 0:
            self.answer = self.config.progress_actor.report.remote(self._progress(log))
        return command

    def _skipped_steps(self) -> frozenset[int]:
        """Rank 0 looks and tells the others, so that all leave out the same."""
        found = [recorded_steps(self.store, self.config.run_url) if self.rank == 0 else []]
        dist.broadcast_object_list(found, src=0)
        return frozenset(found[0])

    def _record_samples(self, step: int, keys: tuple[str, ...]) -> str:
        url = self.config.run_url
        return record_samples(self.store, url, step=step, rank=self.rank, keys=keys)

    def _progress(self, log: StepMetrics, *, is_evaluated: bool = False) -> Progress:
        moment = self.moment
        step = self.state.step
        left = (self.plan.total_steps - step) * self.plan.global_batch_size
        return Progress(
            step=step,
            total_steps=self.plan.total_steps,
            epoch=self.plan.epoch_at(step),
            loss=moment["train/loss"],
            images_per_second=moment["train/images_per_second"],
            data_wait_fraction=moment["train/data_wait_fraction"],
            top1=top1_of(self.state.metrics),
            attempt=self.config.attempt,
            ranks=self.world_size,
            eta_s=left / log.images_per_second,
            from_step=self.began_after,
            trained_s=log.trained_s,
            is_evaluated=is_evaluated,
            checkpoint_s=self.checkpoints.took_s if self.checkpoints is not None else 0.0,
        )

    def _checkpoint(self, images_per_second: float) -> None:
        """Averages statistics, scores the held-out split at an epoch's end, begins to write.

        All ranks take part; rank 0 alone writes.
        """
        began = time.monotonic()
        state = self.state
        state.average_statistics()
        scored_s = 0.0
        said: dict[str, float] = {}
        if state.step in self.plan.epoch_ends:
            is_last = state.step == self.plan.total_steps
            said = self._evaluate("val", is_kept=is_last and state.average is None)
            if state.average is not None:
                with state.average.applied(state.model):
                    said |= self._evaluate("val_ema", is_kept=is_last)
            state.metrics = said
            scored_s = time.monotonic() - began
            if self.writer is not None:
                self.writer.log(state.step, said | {"val/seconds": scored_s})
                self.config.progress_actor.add_phase_seconds.remote("evaluation", scored_s)
        if self.checkpoints is not None:
            self.checkpoints.submit(
                state.checkpoint(said | {"images_per_second": images_per_second})
            )
        if self.writer is not None and self.checkpoints is not None:
            stood_s = time.monotonic() - began - scored_s
            times = {"checkpoint/seconds": stood_s}  # that training stood still
            if self.checkpoints.took_s:
                times["checkpoint/write_seconds"] = self.checkpoints.took_s  # of the one before
            self.writer.log(state.step, times)

    def _evaluate(self, prefix: str, *, is_kept: bool) -> dict[str, float]:
        """Every held-out sample once, all ranks together; percent and mean loss. is_kept: rank 0
        writes what was said of each image, for the pictures at the run's end."""
        parts: list[Predictions] = []

        def keep(batch: MicroBatch, logits: torch.Tensor) -> None:
            p = logits.float().softmax(1)
            parts.append(predict(p, batch.targets, batch.weights, batch.samples, batch.keys))

        on_batch = {"on_batch": keep} if is_kept else {}
        with self.loaders.eval_loader(self.val_manifest) as loader:
            scores = evaluate(
                self.state.model, loader, self.device, self.state.autocast, **on_batch
            )
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
                save_predictions(self.store, self.config.run_url, gather(every))
        return {
            f"{prefix}/top1": 100 * result["top1"],
            f"{prefix}/top5": 100 * result["top5"],
            f"{prefix}/loss": result["loss"],
        }
