"""Waiting with a limit, for tests of processes."""

import time
from collections.abc import Callable

import pytest

BUSY = 3  # limits are those of a quiet machine; other work on its cores makes all of it slower


def wait_for(
    condition: Callable[[], object], limit_s: float, what: Callable[[], str] | str = "condition"
) -> None:
    """Polls until the condition holds; fails after `BUSY * limit_s`. A look that is a whole command
    takes a core from what is waited for: the longer it takes, the rarer it is."""
    deadline = time.monotonic() + BUSY * limit_s
    while True:
        began = time.monotonic()
        if condition():
            return
        if time.monotonic() > deadline:
            pytest.fail(f"not within {BUSY * limit_s} s: {what() if callable(what) else what}")
        time.sleep(max(0.2, 2 * (time.monotonic() - began)))
