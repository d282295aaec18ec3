"""The training loop of each rank: restore, then batch -> step -> metrics -> checkpoint, to the last
step.

The batch of a step is taken first, so that waiting for it counts as waiting for data; gradients are
summed over ranks inside `train_step`, and the weight average follows the optimizer. On checkpoint
steps all ranks then, at an epoch's end, score the validation split; rank 0 copies the state and
starts to write it. About every second all ranks sync, in one all-reduce: times, damaged samples,
and the driver's command. Nothing is reported to Ray Train: its report is a barrier, and a
checkpoint counts by its own index.
"""

import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
import torch
import torch.distributed as dist

from datasets.images.nvjpeg import GpuDecoder
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import TrainLoader
from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from inception.evaluate import evaluate
from inception.predictions import Predictions, gather_predictions, make_predictions
from inception.rank_check import checksum, copy_from_first, find_differing
from orchestration.errors import RankMismatch, TrainingError
from orchestration.job.load import from_dict
from orchestration.run.metrics import top1_of
from orchestration.run.predictions_file import save_predictions
from orchestration.run.progress import Progress
from orchestration.tracking.outbox import Outbox
from orchestration.worker.checkpoint_writer import CheckpointWriter
from orchestration.worker.final_network import write_network
from orchestration.worker.loaders import Loaders, build_cache, data_position
from orchestration.worker.not_finite import MAX_SKIPPED, record_samples, recorded_steps
from orchestration.worker.process_group import device_kinds, use_rank_device
from orchestration.worker.progress_actor import Command
from orchestration.worker.step_metrics import StepMetrics
from orchestration.worker.system_metrics import start_sampling
from orchestration.worker.train_state import TrainState
from orchestration.worker.worker_config import WorkerConfig

if TYPE_CHECKING:
    from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)


class TrainLoop:
    """One rank's training in one attempt."""

    def __init__(self, config: WorkerConfig) -> None:
        """All ranks take part."""
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.config = config
        self.plan = config.plan
        self.job = job = from_dict(config.job)
        self.store = Store(config.store, build_cache(job))
        self.train_manifest = load_manifest(self.store, job.data.train, verify=job.data.verify)
        self.val_manifest = load_manifest(self.store, job.data.val, verify=job.data.verify)
        self.device = use_rank_device(
            threads=job.cluster.cpus_per_worker, is_deterministic=job.model.deterministic
        )
        self.devices = device_kinds(self.device)
        self.loaders = Loaders(
            job=job,
            plan=self.plan,
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            decoder=GpuDecoder(self.device) if job.data.decoder == "nvjpeg" else None,
        )
        self.state = TrainState(
            job,
            self.plan,
            self.store,
            config.run_url,
            position=data_position(job, self.train_manifest),
            device=self.device,
        )
        self.start_step = self.state.step
        self.skipped_steps = self._skipped_steps() if job.loss.not_finite == "skip" else frozenset()
        self.metric_writer: MetricWriter | None = None  # this and the next: on rank 0
        self.checkpoint_writer: CheckpointWriter | None = None
        if self.rank == 0:
            # MLflow's client takes a second to import, and no other rank needs it.
            from orchestration.tracking import writer

            outbox = Outbox(self.store, config.run_url)
            self.metric_writer = writer.MetricWriter(config.run, outbox, "rank-0")
            self.checkpoint_writer = CheckpointWriter(
                self.store,
                config.run_url,
                keep=job.checkpoint.keep,
                flush_metrics=self.metric_writer.flush,
            )
        actor, node = config.progress_actor, ray.util.get_node_ip_address()
        actor.join.remote(self.rank, ray.get_runtime_context().get_node_id())
        logger.warning(  # a warning, so that the rank's log has it
            "rank %d of %d on %s begins after step %d",
            *(self.rank, self.world_size, node, self.start_step),
        )
        self.sampling = None
        if context.get_local_rank() == 0:  # one rank per node
            self.sampling = start_sampling(
                lambda values: actor.add_system_metrics.remote(node, values)
            )
        self.last_metrics: dict[str, float] = {}  # of the last sync
        self.replies: list[Any] = []  # to rank 0's reports, each a command, that are not read yet

    def train(self) -> None:
        """Trains to the last step of the plan, or until the driver stops the ranks."""
        try:
            with self.loaders.train_loader(self.train_manifest, step=self.state.step) as loader:
                self._train_steps(loader)
            if self.checkpoint_writer is not None:
                self.checkpoint_writer.wait()
                if self.state.step == self.plan.total_steps:
                    state = self.state.checkpoint({})
                    write_network(self.job, self.store, self.config.run_url, state)
        finally:
            if self.sampling is not None:
                self.sampling.set()
            if self.checkpoint_writer is not None:
                self.checkpoint_writer.close()
            if self.metric_writer is not None and (unsent := self.metric_writer.close()):
                logger.warning(
                    "MLflow is unreachable; %d metric points wait in the run's outbox", unsent
                )

    def _train_steps(self, loader: TrainLoader) -> None:
        """All ranks take part in the same steps."""
        job, plan, state = self.job, self.plan, self.state
        step_metrics = StepMetrics(
            job,
            plan,
            loader,
            self.metric_writer,
            partial(record_samples, self.store, self.config.run_url, self.rank),
            can_skip=job.loss.not_finite == "skip" and len(self.skipped_steps) < MAX_SKIPPED,
        )
        batches = iter(loader)
        while state.step < plan.total_steps:
            micro_batches = next(batches)
            command = Command.CONTINUE
            if state.step + 1 in self.skipped_steps:
                if len(step_metrics):  # the steps of a sync have no gap
                    command = self._sync_metrics(step_metrics)
                state.skip_step()
            else:
                keys = tuple(key for batch in micro_batches for key in batch.keys)
                step_metrics.add(state.train_on(micro_batches), keys)
            is_checkpoint = plan.is_checkpoint_step(state.step, job.checkpoint.every_steps)
            if len(step_metrics) and (step_metrics.is_due or is_checkpoint):
                command = self._sync_metrics(step_metrics)
            if is_checkpoint or command is not Command.CONTINUE:
                self._checkpoint(step_metrics.images_per_second)
                if self.rank == 0 and self.last_metrics and state.step in plan.epoch_ends:
                    self._report(step_metrics, is_evaluated=True)
                step_metrics.resume_clock()
            if command is Command.STOP:
                return

    def _sync_metrics(self, step_metrics: StepMetrics) -> Command:
        """All ranks take part; -> the same command on all, the strongest of the replies to rank 0's
        reports that have arrived. Every reply is read once: none is lost, however late."""
        command = Command.CONTINUE
        if self.replies:
            count = len(self.replies)
            ready, self.replies = ray.wait(self.replies, num_returns=count, timeout=0)
            with contextlib.suppress(ray.exceptions.RayError):  # the driver is shutting down
                command = max(ray.get(ready), default=command)
        self.last_metrics, command = step_metrics.sync(self.state.step, command)
        if self.rank == 0:
            self._report(step_metrics)
        return command

    def _skipped_steps(self) -> frozenset[int]:
        """Steps whose loss was not finite in an earlier attempt. All ranks take part: rank 0 reads
        and broadcasts them, so that all skip the same."""
        steps = [recorded_steps(self.store, self.config.run_url) if self.rank == 0 else []]
        dist.broadcast_object_list(steps, src=0)
        return frozenset(steps[0])

    def _report(self, step_metrics: StepMetrics, *, is_evaluated: bool = False) -> None:
        """Sends the driver this attempt's progress, from rank 0."""
        metrics, step, plan = self.last_metrics, self.state.step, self.plan
        images_left = (plan.total_steps - step) * plan.global_batch_size
        writer = self.checkpoint_writer
        progress = Progress(
            step=step,
            total_steps=plan.total_steps,
            epoch=plan.epoch_at(step),
            loss=metrics["train/loss"],
            images_per_second=metrics["train/images_per_second"],
            data_wait_fraction=metrics["train/data_wait_fraction"],
            top1=top1_of(self.state.metrics),
            attempt=self.config.attempt,
            ranks=self.world_size,
            eta_s=images_left / step_metrics.images_per_second,
            from_step=self.start_step,
            trained_s=step_metrics.trained_s,
            is_evaluated=is_evaluated,
            devices=" + ".join(self.devices),
            checkpoint_s=writer.last_write_s if writer is not None else 0.0,
        )
        self.replies.append(self.config.progress_actor.report.remote(progress))

    def _checkpoint(self, images_per_second: float) -> None:
        """Checks that all ranks have the same bits, evaluates at an epoch's end, starts to write.

        All ranks take part; rank 0 alone writes. Devices of several kinds round differently, so
        that their ranks may drift apart: they get rank 0's bits, unchecked.
        """
        start = time.monotonic()
        state = self.state
        name = f"rank {self.rank} on {ray.util.get_node_ip_address()}"
        if len(self.devices) > 1:
            copy_from_first(state.tensors(), self.device)
        elif different := find_differing(checksum(state.tensors()), name):
            remedy = "Take that node out of the cluster, and test its memory and GPU"
            if len(different) == dist.get_world_size():  # no majority
                remedy = "One of these runs on a broken machine: test their memory and GPUs"
            raise RankMismatch(
                f"step {state.step}: got different bits from {', '.join(different)}; all ranks "
                f"compute the same. {remedy}"
            )
        evaluation_s = 0.0
        metrics: dict[str, float] = {}
        if state.step in self.plan.epoch_ends:
            is_last = state.step == self.plan.total_steps
            metrics = self._evaluate("val", saves_predictions=is_last and state.average is None)
            if state.average is not None:
                with state.average.applied(state.model):
                    metrics |= self._evaluate("val_ema", saves_predictions=is_last)
            state.metrics = metrics
            evaluation_s = time.monotonic() - start
        if self.metric_writer is None or self.checkpoint_writer is None:
            return
        if metrics:
            self.metric_writer.log(state.step, metrics | {"val/seconds": evaluation_s})
            self.config.progress_actor.add_phase_seconds.remote("evaluation", evaluation_s)
        saved = metrics | {"images_per_second": images_per_second}
        self.checkpoint_writer.submit(state.checkpoint(saved))
        times = {"checkpoint/seconds": time.monotonic() - start - evaluation_s}
        if self.checkpoint_writer.last_write_s:  # of the checkpoint before this one
            times["checkpoint/write_seconds"] = self.checkpoint_writer.last_write_s
        self.metric_writer.log(state.step, times)

    def _evaluate(self, prefix: str, *, saves_predictions: bool) -> dict[str, float]:
        """Scores every validation sample once; accuracies in percent, and the mean loss.

        All ranks take part. saves_predictions: rank 0 writes those of all ranks to storage. Raises
        TrainingError if samples are missing, or more are damaged than the job allows.
        """
        parts: list[Predictions] = []

        def collect(batch: MicroBatch, logits: torch.Tensor) -> None:
            if saves_predictions:
                p = logits.float().softmax(1)
                parts.append(
                    make_predictions(p, batch.targets, batch.weights, batch.samples, batch.keys)
                )

        with self.loaders.eval_loader(self.val_manifest) as loader:
            result = evaluate(self.state.model, loader, self.device, self.state.autocast, collect)
            damaged = torch.tensor([float(loader.damages.total)], device=self.device)
        dist.all_reduce(damaged)
        num_damaged = float(damaged)
        if result["count"] + num_damaged != self.plan.val_samples or (
            num_damaged > self.job.data.max_damaged
        ):
            raise TrainingError(
                f"{self.job.data.val}: got {result['count']:.0f} scored and {num_damaged:.0f} "
                f"damaged samples; the manifest counts {self.plan.val_samples}. Check the split "
                "with `rayception verify`."
            )
        if saves_predictions:
            predictions = gather_predictions(parts)
            if predictions is not None:
                save_predictions(self.store, self.config.run_url, predictions)
        return {
            f"{prefix}/top1": 100 * result["top1"],
            f"{prefix}/top5": 100 * result["top5"],
            f"{prefix}/loss": result["loss"],
        }
