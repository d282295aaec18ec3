"""Rates of pipelines measured in turn: what a machine does meanwhile meets all of them."""

import time
from collections.abc import Callable


def compare(pipelines: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Items per second of each pipeline, in turn, `rounds` times after a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, work in pipelines.items():
            began = time.perf_counter()
            count = work()
            if number:
                rates[name].append(count / (time.perf_counter() - began))
    return rates
