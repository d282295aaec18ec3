"""Metrics of training steps: collected on each rank, all-reduced every few steps, logged by rank 0.

Losses stay on the device until the all-reduce, so that no step waits for a number to come back.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from datasets.loading.batch import DAMAGE_KINDS
from datasets.loading.loader import TrainLoader
from inception.step import StepResult
from orchestration.errors import Rollback, TrainingError
from orchestration.job.job import Job
from orchestration.job.plan import Plan, learning_rate_at
from orchestration.worker.progress_actor import Command

if TYPE_CHECKING:
    from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)

SYNC_EVERY_S = 1.0  # of shorter steps; a node's end may be announced only seconds ahead


@dataclass(frozen=True, slots=True)
class _Totals:
    """One sync's sums over ranks, the same on every rank."""

    losses: list[float]  # by step, of the global batch
    damaged: dict[str, float]  # by kind: samples since the attempt started
    command: Command
    busy_s: list[float]  # by rank: until it is ready for the gradients' all-reduce
    elapsed_s: float  # this and the rest: means over ranks
    wait_s: float
    compute_s: float
    all_reduce_s: float


class StepMetrics:
    """The steps of one attempt on one rank since the last sync."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        loader: TrainLoader,
        writer: "MetricWriter | None",
        record_samples: Callable[[int, tuple[str, ...]], str],
        *,
        can_skip: bool,
    ) -> None:
        """writer: rank 0's; None on the other ranks. record_samples: writes the names of a step's
        samples to storage; -> their folder. can_skip: a step whose loss is not finite may be left
        out."""
        self._job, self._plan, self._loader, self._writer = job, plan, loader, writer
        self._record_samples, self._can_skip = record_samples, can_skip
        self._results: list[StepResult] = []
        self._keys: list[tuple[str, ...]] = []  # by step
        self._steps_per_sync = 1  # the same on all ranks
        self._num_logged_damages = 0
        self._trained_steps = 0
        self.trained_s = 0.0  # of this attempt's steps, without evaluations and checkpoints
        self.resume_clock()

    def __len__(self) -> int:
        return len(self._results)

    @property
    def is_due(self) -> bool:
        """Whether to sync now: after `log_every_steps` steps, or those of a second."""
        return len(self._results) >= self._steps_per_sync

    @property
    def images_per_second(self) -> float:
        """Over all steps of this attempt, without evaluations and checkpoints."""
        return self._trained_steps * self._plan.global_batch_size / max(self.trained_s, 1e-9)

    def add(self, result: StepResult, keys: tuple[str, ...]) -> None:
        """keys: names of this rank's samples in the step."""
        self._results.append(result)
        self._keys.append(keys)

    def resume_clock(self) -> None:
        """Leaves out the time since the last sync: it was not spent on training."""
        self._start_time, self._start_wait_s = time.monotonic(), self._loader.wait_s

    def sync(self, step: int, command: Command) -> tuple[dict[str, float], Command]:
        """All-reduces and logs the steps since the last sync, up to finished step `step`.

        command: what rank 0 received from the driver; the other ranks pass CONTINUE. All ranks take
        part, in one all-reduce. -> the metrics of a progress report, and the command for all ranks.
        Raises the same error on all ranks: Rollback or TrainingError if a loss is not finite,
        TrainingError if more samples are damaged than the job allows.
        """
        elapsed_s = time.monotonic() - self._start_time
        num_steps = len(self._results)
        self._trained_steps += num_steps
        self.trained_s += elapsed_s
        totals = self._all_reduce(command, elapsed_s)
        step_s, most = totals.elapsed_s / num_steps, self._job.tracking.log_every_steps
        self._steps_per_sync = max(1, min(most, int(SYNC_EVERY_S / step_s)))
        self._log_damages()
        self._check_losses(step - num_steps + 1, totals.losses)
        self._check_damages(step, totals)
        rates = self._rates(totals, elapsed_s)
        if self._writer is not None:
            self._log_steps(self._writer, step - num_steps + 1, totals.losses)
            self._writer.log(step, rates)
        self._results, self._keys = [], []
        self.resume_clock()
        return {"train/loss": totals.losses[-1], **rates}, totals.command

    def _all_reduce(self, command: Command, elapsed_s: float) -> _Totals:
        losses = torch.stack([result.loss for result in self._results])  # (steps,), on all ranks
        world_size = dist.get_world_size()
        wait_s = self._loader.wait_s - self._start_wait_s
        compute_s = sum(result.compute_s() for result in self._results)
        all_reduce_s = sum(result.all_reduce_s() for result in self._results)
        busy_s = [0.0] * world_size  # each rank fills its own place
        busy_s[dist.get_rank()] = wait_s + compute_s
        parts = [
            [float(self._loader.damages.counts[kind]) for kind in DAMAGE_KINDS],
            [float(command)],
            busy_s,
            [time_s / world_size for time_s in (elapsed_s, wait_s, compute_s, all_reduce_s)],
        ]
        # float32 (kinds + 1 + ranks + 4,)
        sums = torch.tensor([value for part in parts for value in part], device=losses.device)
        dist.all_reduce(sums)
        by_part = torch.split(sums.cpu(), [len(part) for part in parts])
        damaged, commands, by_rank, means_s = (part.tolist() for part in by_part)
        by_kind = dict(zip(DAMAGE_KINDS, damaged, strict=True))
        return _Totals(losses.tolist(), by_kind, Command(round(commands[0])), by_rank, *means_s)

    def _log_damages(self) -> None:
        """This rank's first damaged samples, each once."""
        messages = self._loader.damages.first
        for message in messages[self._num_logged_damages :]:
            logger.warning("skipped: %s", message)
        self._num_logged_damages = len(messages)

    def _check_losses(self, first: int, losses: list[float]) -> None:
        for step, (loss, keys) in enumerate(zip(losses, self._keys, strict=True), start=first):
            if math.isfinite(loss):
                continue
            folder = self._record_samples(step, keys)
            problem = f"train/loss: got {loss} in step {step}; a loss is a finite number"
            if self._can_skip:
                raise Rollback(f"{problem} (its samples are named in {folder})")
            raise TrainingError(
                f"{problem}. Lower optim.lr, or set optim.clip_norm, and run again; the step's "
                f"samples are named in {folder}. `rayception resume` with "
                "loss.not_finite=skip goes on without it."
            )

    def _check_damages(self, step: int, totals: _Totals) -> None:
        num_damaged, limit = sum(totals.damaged.values()), self._job.data.max_damaged
        damages = self._loader.damages
        if num_damaged > limit:
            raise TrainingError(
                f"data.max_damaged: got {num_damaged:.0f} damaged samples in steps up to {step}, "
                f"more than {limit} (on this rank: {dict(damages.counts)}, such as "
                f"{damages.first[:2]}). Find them with `rayception verify`, repair them or raise "
                "the limit."
            )

    def _rates(self, totals: _Totals, elapsed_s: float) -> dict[str, float]:
        num_images = len(self._results) * self._plan.global_batch_size
        rates = {
            "train/images_per_second": num_images / elapsed_s,
            "train/data_wait_fraction": min(1.0, totals.wait_s / totals.elapsed_s),
            "train/compute_fraction": min(1.0, totals.compute_s / totals.elapsed_s),
            "train/all_reduce_fraction": min(1.0, totals.all_reduce_s / totals.elapsed_s),
            "train/damaged_samples": sum(totals.damaged.values()),
        }
        for kind, count in totals.damaged.items():
            if count:
                rates[f"train/damaged_{kind}_samples"] = count
        return rates | _slowest_rank(totals.busy_s, elapsed_s)

    def _log_steps(self, writer: "MetricWriter", first: int, losses: list[float]) -> None:
        norms = torch.stack([result.grad_norm for result in self._results]).tolist()
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first):
            writer.log(
                step,
                {
                    "train/loss": loss,
                    "train/grad_norm": norm,
                    "train/lr": learning_rate_at(self._job, self._plan, step - 1),
                    "train/epoch": self._plan.epoch_at(step),
                },
            )


def _slowest_rank(busy_s: list[float], elapsed_s: float) -> dict[str, float]:
    """Which rank the others wait for, and how far it lags behind their median. busy_s: each rank's
    time for data, forward and most of backward."""
    slowest = max(range(len(busy_s)), key=busy_s.__getitem__)
    others = busy_s[:slowest] + busy_s[slowest + 1 :]
    if not others:
        return {}
    lag_s = busy_s[slowest] - statistics.median_high(others)
    return {
        "train/slowest_rank": float(slowest),
        "train/slowest_rank_lag_fraction": max(0.0, lag_s / elapsed_s),
    }
