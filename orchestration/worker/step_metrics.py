"""What the ranks say of their steps: gathered for a few steps, summed once, sent by rank 0.

The losses stay on the device until then, so that no step waits for a number to come back.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from datasets.loading.batch import KINDS, Damages
from datasets.loading.loader import TrainLoader
from inception.step import StepResult
from orchestration.errors import Rollback, TrainingError
from orchestration.job.job import Job
from orchestration.job.plan import Plan, learning_rate_at
from orchestration.worker.progress_actor import Command

if TYPE_CHECKING:
    from orchestration.tracking.writer import MetricWriter

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # at least, where steps are shorter than that: a notice may be short


class StepMetrics:
    """The steps of one attempt on one rank since they were last sent."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        loader: TrainLoader,
        writer: "MetricWriter | None",
        keep: Callable[[int, tuple[str, ...]], str],
        *,
        can_skip: bool,
    ) -> None:
        """writer: rank 0's; the other ranks have none. keep: writes the names of a step's samples
        for a person; -> where. can_skip: a step without a finite loss may be left out."""
        self._keep, self._can_skip = keep, can_skip
        self._job, self._plan, self._loader, self._writer = job, plan, loader, writer
        self._results: list[StepResult] = []
        self._keys: list[tuple[str, ...]] = []  # of each step's samples on this rank
        self._told = 0  # messages of damage that stand in the log
        self._group = 1  # steps until the next look; the same on all ranks
        self._trained_steps = 0
        self._trained_s = 0.0
        self.resume_clock()

    def __len__(self) -> int:
        return len(self._results)

    @property
    def is_due(self) -> bool:
        """Whether the ranks speak now: after `log_every_steps`, or a second's worth of steps."""
        return len(self._results) >= self._group

    @property
    def trained_s(self) -> float:
        """Seconds of this attempt's steps, without evaluations and checkpoints."""
        return self._trained_s

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

    def sync(self, step: int, command: Command) -> tuple[dict[str, float], Command]:
        """The last steps' global losses and skipped samples, up to `step` finished ones.

        wish: what rank 0 has heard; the others give GO_ON. All ranks take part: one all-reduce.
        Rank 0 logs every step. Returns what a progress line needs, and the wish on which all
        agree. Raises on all ranks alike: RollBack or TrainingError, a loss that is no finite
        number; TrainingError, more damaged samples than the job allows.
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
        busy = torch.zeros(dist.get_world_size())  # ranks' own seconds, each in its place
        busy[dist.get_rank()] = wait_s + sum(result.own_s() for result in results)
        spent = [
            elapsed_s, wait_s, sum(one.own_s() for one in results),
            sum(one.all_reduce_s() for one in results),
        ]  # fmt: skip
        asked = torch.tensor([float(command), *(one / dist.get_world_size() for one in spent)])
        sums = torch.cat([shares, skipped, *(one.to(shares.device) for one in (asked, busy))])
        dist.all_reduce(sums)  # (steps + kinds + 5 + ranks,)
        losses, by_kind, heard, own_s = (
            part.tolist() for part in torch.split(sums, [len(results), len(KINDS), 5, len(busy)])
        )
        num_damaged = sum(by_kind)
        step_s = heard[1] / len(results)
        waited, computed, all_reduced = (min(1.0, one / heard[1]) for one in heard[2:])
        self._group = max(1, min(self._job.tracking.log_every_steps, int(LOOK_EVERY_S / step_s)))
        for message in damages.first[self._told :]:
            logger.warning("skipped: %s", message)
        self._told = len(damages.first)
        norms = torch.stack([result.grad_norm for result in results]).tolist()
        first = step - len(results) + 1
        self._check(first, losses, keys, num_damaged, damages)
        rates = {
            "train/images_per_second": len(results) * self._plan.global_batch_size / elapsed_s,
            "train/data_wait_fraction": waited,  # these three are means over ranks
            "train/compute_fraction": computed,
            "train/all_reduce_fraction": all_reduced,
            "train/damaged_samples": num_damaged,
        }
        rates |= {
            f"train/damaged_{kind}_samples": number
            for kind, number in zip(KINDS, by_kind, strict=True)
            if number
        }
        rates |= _spread(own_s, elapsed_s)
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
        return {"train/loss": losses[-1], **rates}, Command(round(heard[0]))

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
                what = f"train/loss: got {loss} in step {number}; a loss is a finite number"
                if self._can_skip:
                    raise Rollback(f"{what} (its samples are named in {where})")
                raise TrainingError(
                    f"{what}. Lower optim.lr, or set optim.clip_norm, and run again; the step's "
                    f"samples are named in {where}. `rayception resume` with "
                    "loss.not_finite=skip goes on without it."
                )
        limit = self._job.data.max_damaged
        if num_damaged > limit:
            raise TrainingError(
                f"data.max_damaged: got {num_damaged:.0f} damaged samples in steps up to "
                f"{first + len(losses) - 1}, more than {limit} (on this rank: "
                f"{dict(damages.counts)}, such as {damages.first[:2]}). Look with "
                "`rayception verify`, mend them or raise the limit."
            )


def _spread(own_s: list[float], elapsed_s: float) -> dict[str, float]:
    """Which rank the others wait for. own_s: each rank's seconds until it is ready for the
    gradients' all-reduce: data, forward and most of backward."""
    slowest = max(range(len(own_s)), key=lambda rank: own_s[rank])
    others = sorted(own_s[:slowest] + own_s[slowest + 1 :])
    if not others:
        return {}
    median = others[len(others) // 2]
    return {
        "train/slowest_rank": float(slowest),
        "train/slowest_rank_lag_fraction": max(0.0, (own_s[slowest] - median) / elapsed_s),
    }
