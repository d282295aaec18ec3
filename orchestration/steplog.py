"""What the ranks say of their steps: gathered for a few steps, summed once, sent by rank 0.

The losses stay on the device until then, so that no step waits for a number to come back.
"""

import logging
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from datasets.batch import KINDS, Damages
from datasets.loader import TrainLoader
from inception.step import StepResult
from orchestration.errors import TrainingError
from orchestration.job import Job
from orchestration.plan import Plan, learning_rate_at
from orchestration.tracking import MetricWriter

logger = logging.getLogger(__name__)


class StepLog:
    """The steps of one attempt on one rank since they were last sent."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        loader: TrainLoader,
        writer: MetricWriter | None,
        keep: Callable[[int, tuple[str, ...]], str],
    ) -> None:
        """writer: rank 0's; the other ranks have none. keep: writes the names of a step's samples
        for a person; -> where."""
        self._keep = keep
        self._job, self._plan, self._loader, self._writer = job, plan, loader, writer
        self._results: list[StepResult] = []
        self._keys: list[tuple[str, ...]] = []  # of each step's samples on this rank
        self._told = 0  # messages of damage that stand in the log
        self._trained_steps = 0
        self._trained_s = 0.0
        self.resume_clock()

    def __len__(self) -> int:
        return len(self._results)

    @property
    def images_per_second(self) -> float:
        """Over all steps of this attempt, without evaluations and checkpoints."""
        return self._trained_steps * self._plan.global_batch_size / max(self._trained_s, 1e-9)

    def add(self, result: StepResult, keys: tuple[str, ...]) -> None:
        """keys: names of this rank's samples in the step."""
        self._results.append(result)
        self._keys.append(keys)

    def resume_clock(self) -> None:
        """Time begins anew: what came between was no training."""
        self._began, self._waited = time.monotonic(), self._loader.wait_s

    def send(self, step: int) -> dict[str, float]:
        """The last steps' global losses and skipped samples, up to `step` finished ones.

        All ranks take part: one all-reduce. Rank 0 logs every step. Returns what a progress line
        needs. Raises TrainingError, on all ranks alike: a loss that is no finite number, more
        damaged samples than the job allows.
        """
        elapsed_s = time.monotonic() - self._began
        wait_s = self._loader.wait_s - self._waited
        results, self._results = self._results, []
        keys, self._keys = self._keys, []
        self._trained_steps += len(results)
        self._trained_s += elapsed_s
        damages = self._loader.damages
        shares = torch.stack([result.loss for result in results]).float()  # (steps,)
        counts = [float(damages.counts[kind]) for kind in KINDS]
        skipped = torch.tensor(counts, device=shares.device)
        sums = torch.cat([shares, skipped])  # (steps + kinds,)
        dist.all_reduce(sums)
        losses, by_kind = sums[: len(results)].tolist(), sums[len(results) :].tolist()
        num_damaged = sum(by_kind)
        for message in damages.first[self._told :]:
            logger.warning("skipped: %s", message)
        self._told = len(damages.first)
        norms = torch.stack([result.grad_norm for result in results]).tolist()
        first = step - len(results) + 1
        self._check(first, losses, keys, num_damaged, damages)
        rates = {
            "train/images_per_second": len(results) * self._plan.global_batch_size / elapsed_s,
            "train/data_wait_fraction": min(1.0, wait_s / elapsed_s),
            "train/damaged_samples": num_damaged,
        }
        rates |= {
            f"train/damaged_{kind}_samples": number
            for kind, number in zip(KINDS, by_kind, strict=True)
            if number
        }
        if self._writer is not None:
            for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first):
                self._writer.log(
                    number,
                    {
                        "train/loss": loss,
                        "train/grad_norm": norm,
                        "train/lr": learning_rate_at(self._job, self._plan, number - 1),
                        "train/epoch": self._plan.epoch_at(number),
                    },
                )
            self._writer.log(step, rates)
        self.resume_clock()
        return {"train/loss": losses[-1], **rates}

    def _check(
        self,
        first: int,
        losses: list[float],
        keys: list[tuple[str, ...]],
        num_damaged: float,
        damages: Damages,
    ) -> None:
        for number, loss in enumerate(losses, start=first):
            if loss - loss != 0.0:  # infinite or not a number
                where = self._keep(number, keys[number - first])
                raise TrainingError(
                    f"train/loss: got {loss} in step {number}; a loss is a finite number. "
                    "Lower optim.lr, or set optim.clip_norm, and run again; the step's samples are "
                    f"named in {where}."
                )
        limit = self._job.data.max_damaged
        if num_damaged > limit:
            raise TrainingError(
                f"data.max_damaged: got {num_damaged:.0f} damaged samples in steps up to "
                f"{first + len(losses) - 1}, more than {limit} (on this rank: "
                f"{dict(damages.counts)}, such as {damages.first[:2]}). Look with "
                "`rayception verify`, mend them or raise the limit."
            )
