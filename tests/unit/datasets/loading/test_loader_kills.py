"""A loader killed with -9 at a hundred random moments, each time going on with another number of
ranks and threads: the sequence of samples and pixels is the unbroken one's."""

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
from tests.unit.datasets.victim import began_file, lines_of, work


def ended(victim: ForkServerProcess, limit_s: float) -> int | None:
    """The exit code; None where it still runs after so many seconds, which end it."""
    victim.join(limit_s)
    code = victim.exitcode
    victim.kill()
    victim.join(10)
    return code


# 700 steps are 23 epochs and a part.
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
    unbroken = tmp_path / "unbroken"
    assert ended(start(work, unbroken, url, last_step, 1, 1, None), 200) == 0
    expected = lines_of(unbroken.read_text())
    assert len(expected) == last_step

    choose = random.Random(7)
    broken = tmp_path / "broken"
    broken.touch()
    killed = 0
    reached: list[int] = []
    while (step := len(lines_of(broken.read_text()))) < last_step:
        world_size, threads = choose.choice([1, 2, 3, 6]), choose.choice([0, 1, 2])
        began_file(broken).unlink(missing_ok=True)
        is_last = killed == kills or step >= last_step - 60
        # From the moment it begins to some steps later.
        limit = step + choose.choice([0, 0, 1, 3, 8])
        victim = start(
            work, broken, url, last_step, world_size, threads, None if is_last else limit + 3
        )
        if not is_last:
            deadline = time.monotonic() + 60
            while not (began_file(broken).exists() and len(lines_of(broken.read_text())) >= limit):
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(choose.uniform(0, 0.03))
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            assert ended(victim, 10) == -signal.SIGKILL
            killed += 1
            reached.append(len(lines_of(broken.read_text())) - step)
        else:
            assert ended(victim, 200) == 0
    assert killed == kills
    assert sum(1 for steps in reached if steps) > 0.3 * kills  # many died in the midst of it
    assert lines_of(broken.read_text()) == expected
