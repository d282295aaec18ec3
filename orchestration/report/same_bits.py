"""Whether runs computed the same bits, from what MLflow has of them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Metrics that follow from the job alone; all others depend on time or place.
RESULT_METRICS = (
    "train/loss", "train/grad_norm", "train/lr", "val/loss", "val/top1", "val/top5",
    "val_ema/loss", "val_ema/top1", "val_ema/top5",
)  # fmt: skip

History = Mapping[str, Sequence[tuple[int, float]]]  # (step, value) by key


@dataclass(frozen=True, kw_only=True, slots=True)
class SameBits:
    """steps: steps that every run has. step, metric: where the first difference is, None without
    one. digests_equal: None unless every run has the digest of a checkpoint of one step,
    `digests_of`."""

    steps: int
    step: int | None
    metric: str | None
    digests_equal: bool | None
    digests_of: int | None

    def __str__(self) -> str:
        if not self.steps:
            return "no step in common"
        digests = ""
        if self.digests_equal is not None:
            verdict = "equal" if self.digests_equal else "different"
            digests = f"; {verdict} digests of the checkpoints of step {self.digests_of:,}"
        if self.step is None:
            return f"equal to the last bit over all {self.steps:,} steps{digests}"
        return f"first difference in step {self.step:,}, {self.metric}{digests}"


def same_bits(histories: Sequence[History], digests: Sequence[str | None]) -> SameBits:
    """histories: of each run, with RESULT_METRICS. digests: `step N: DIGEST` of its last
    checkpoint, if known."""
    by_key = {key: [dict(history.get(key, ())) for history in histories] for key in RESULT_METRICS}
    differences = []
    for key, runs in by_key.items():
        first, *others = runs
        for step in set(first).intersection(*others):
            values = {repr(run[step]) for run in runs}  # NaN is equal to NaN here
            if len(values) > 1:
                differences.append((step, key))
    first_difference = min(differences, key=lambda d: d[0], default=(None, None))
    known = [digest for digest in digests if digest is not None]
    of_steps = {int(digest.removeprefix("step ").partition(":")[0]) for digest in known}
    is_one_step = len(known) == len(digests) and len(of_steps) == 1
    losses = by_key["train/loss"]
    return SameBits(
        steps=len(set(losses[0]).intersection(*losses[1:])),
        step=first_difference[0],
        metric=first_difference[1],
        digests_equal=len(set(known)) == 1 if is_one_step else None,
        digests_of=min(of_steps) if is_one_step else None,
    )
