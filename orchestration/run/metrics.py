"""Names of a run's metrics and weights."""

from collections.abc import Mapping

RAW, AVERAGE = "raw", "average"  # the weights as trained, and their running average


def top1_of(metrics: Mapping[str, float]) -> float | None:
    """Top-1 accuracy in percent on the validation split, of the averaged weights if an average is
    kept; None before the first evaluation."""
    return metrics.get("val_ema/top1", metrics.get("val/top1"))
