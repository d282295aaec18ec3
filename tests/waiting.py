"""Waiting with a limit, for tests of processes."""

import time
from collections.abc import Callable

import pytest


def wait_for(
    condition: Callable[[], object], limit_s: float, what: Callable[[], str] | str = "condition"
) -> None:
    """Polls until the condition holds; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s} s: {what() if callable(what) else what}")
        time.sleep(0.2)
