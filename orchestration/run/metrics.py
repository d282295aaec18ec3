"""What the metrics of a run mean."""

from collections.abc import Mapping

RAW, AVERAGE = "raw", "average"  # the weights as trained, and their running average


def top1_of(metrics: Mapping[str, float]) -> float | None:
    """Percent of the held-out split, of the averaged weights where an average is kept; None before
    the first evaluation."""
    return metrics.get("val_ema/top1", metrics.get("val/top1"))
