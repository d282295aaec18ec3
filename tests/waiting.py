"""Waiting with a limit, for tests of processes."""

import time
from collections.abc import Callable

import pytest


def wait_for(
    condition: Callable[[], object], limit_s: float, what: Callable[[], str] | str = "condition"
) -> None:
    """Polls until the condition holds; fails after `limit_s`. A look that is a whole command takes
    a core from what is waited for: the longer it takes, the rarer it is."""
    deadline = time.monotonic() + limit_s
    while True:
        began = time.monotonic()
        if condition():
            return
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s} s: {what() if callable(what) else what}")
        time.sleep(max(0.2, 2 * (time.monotonic() - began)))
