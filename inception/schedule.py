"""The learning rate as a pure function of the (fractional) epoch. No torch here."""

from collections.abc import Sequence
from math import cos, floor, pi, sqrt

from inception.errors import unknown_name
from inception.recipes import LR_SCALINGS, SCHEDULE_NAMES


def learning_rate(
    epoch: float,
    *,
    name: str,
    lr: float,
    epochs: float,
    decay: float = 0.94,
    every_epochs: float = 2.0,
    warmup_epochs: float = 0.0,
    milestones: Sequence[float] = (),
) -> float:
    """The learning rate at `epoch` (0 at the first step); the keywords are a job's `schedule`.

    Linear warm-up from lr / 10 over warmup_epochs, then: `staircase` lr x decay^floor(epoch /
    every_epochs) (1512.00567, section 8: 0.94 every two epochs, counted from the start of
    training), `cosine` to zero at `epochs`, `step` lr x decay at each of `milestones` (epochs),
    `constant`. Raises ModelError for another name.
    """
    if name not in SCHEDULE_NAMES:
        raise unknown_name("schedule.name", name, SCHEDULE_NAMES)
    if epoch < warmup_epochs:
        return lr * (0.1 + 0.9 * epoch / warmup_epochs)
    if name == "staircase":
        return lr * float(decay ** floor(epoch / every_epochs))
    if name == "step":
        return lr * float(decay ** sum(epoch >= milestone for milestone in milestones))
    if name == "cosine":
        cosine_epochs = epochs - warmup_epochs
        # A run that is all warm-up ends at zero.
        progress = (epoch - warmup_epochs) / cosine_epochs if cosine_epochs > 0 else 1.0
        return lr * 0.5 * (1 + cos(pi * min(1.0, progress)))
    return lr


def scaled_rate(lr: float, *, rule: str, batch_size: int, reference: int) -> float:
    """The learning rate for a global batch of `batch_size`, if `lr` is for `reference` samples.

    The rule is explicit, because the published rates of Inception differ fifteenfold per sample
    (0.045 for 1,600; 0.165 for 256): `none`, `linear` (1706.02677) or `sqrt`. Raises ModelError for
    another rule.
    """
    if rule not in LR_SCALINGS:
        raise unknown_name("optim.lr_scaling", rule, LR_SCALINGS)
    ratio = batch_size / reference
    return lr * {"none": 1.0, "linear": ratio, "sqrt": sqrt(ratio)}[rule]
