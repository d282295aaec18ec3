"""A loader killed with -9 at a hundred random moments, resumed each time with other numbers of
ranks and threads: the samples and pixels are those of an uninterrupted one."""

import os
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from datasets.shards.manifest import Manifest
from datasets.storage.store import Store
from tests.forks import start
from tests.unit.datasets.victim import lines_of, started_file, work


def ended(victim: ForkServerProcess, limit_s: float) -> int | None:
    """The exit code; None if it had to be killed after limit_s."""
    victim.join(limit_s)
    code = victim.exitcode
    victim.kill()
    victim.join(10)
    return code


# 700 steps are more than 23 epochs.
@pytest.mark.parametrize(
    ("kills", "last_step"),
    [
        pytest.param(10, 150, id="ten"),
        pytest.param(100, 700, marks=pytest.mark.exhaustive, id="a hundred"),
    ],
)
def test_kills_change_nothing(
    packed: tuple[Store, Manifest], tmp_path: Path, kills: int, last_step: int
) -> None:
    url = packed[1].url
    reference = tmp_path / "reference"
    assert ended(start(work, reference, url, last_step, 1, 1, None), 200) == 0
    expected = lines_of(reference.read_text())
    assert len(expected) == last_step

    rng = random.Random(7)
    log = tmp_path / "log"
    log.touch()
    killed = 0
    reached: list[int] = []
    while (step := len(lines_of(log.read_text()))) < last_step:
        world_size, threads = rng.choice([1, 2, 3, 6]), rng.choice([0, 1, 2])
        started_file(log).unlink(missing_ok=True)
        is_last = killed == kills or step >= last_step - 60
        # The kill comes between the start and some steps later.
        limit = step + rng.choice([0, 0, 1, 3, 8])
        victim = start(
            work, log, url, last_step, world_size, threads, None if is_last else limit + 3
        )
        if not is_last:
            deadline = time.monotonic() + 60
            while not (started_file(log).exists() and len(lines_of(log.read_text())) >= limit):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            assert ended(victim, 10) == -signal.SIGKILL
            killed += 1
            reached.append(len(lines_of(log.read_text())) - step)
        else:
            assert ended(victim, 200) == 0
    assert killed == kills
    assert sum(1 for steps in reached if steps) > 0.3 * kills  # many died in the middle
    assert lines_of(log.read_text()) == expected
