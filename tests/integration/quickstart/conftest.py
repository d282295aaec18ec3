"""One finished quickstart, and the stack that remembers it, for all tests of this folder."""

import json
import time
from typing import Any

import pytest

from tests.integration.conftest import Home

JOB = "jobs/quickstart.yaml"


class Finished:
    """A finished quickstart: what it printed and the stack that remembers it."""

    def __init__(self, home: Home, outcome: dict[str, Any], wall_s: float) -> None:
        self.home, self.outcome, self.wall_s = home, outcome, wall_s


@pytest.fixture(scope="session")
def finished(shared_home: Home) -> Finished:
    began = time.monotonic()
    done = shared_home.call("run", JOB, "--json", timeout_s=500)
    assert done.returncode == 0, done.stderr
    return Finished(shared_home, json.loads(done.stdout), time.monotonic() - began)
