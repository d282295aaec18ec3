"""One finished quickstart, and the stack that remembers it, for all tests of this folder."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import Home

JOB = "jobs/quickstart.yaml"


class Finished:
    """A finished quickstart: what it printed and the stack that remembers it."""

    def __init__(self, home: Home, outcome: dict[str, Any], wall_s: float) -> None:
        self.home, self.outcome, self.wall_s = home, outcome, wall_s


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    home = Home(tmp_path_factory.mktemp("home"))
    up = home.call("stack", "up")
    assert up.returncode == 0, up.stderr
    began = time.monotonic()
    done = home.call("run", JOB, "--json", timeout_s=500)
    assert done.returncode == 0, done.stderr
    yield Finished(home, json.loads(done.stdout), time.monotonic() - began)
    down = home.call("stack", "down", "--force")
    assert down.returncode == 0, down.stderr
    home.wait_until_empty()
