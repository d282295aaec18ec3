"""A loader killed with -9 at a hundred random moments, each time going on with another number of
ranks and threads: the sequence of samples and pixels is the unbroken one's."""

import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from datasets.manifest import Manifest
from datasets.store import Store
from tests.unit.datasets.victim import lines_of

KILLS = 100
LAST_STEP = 700  # 23 epochs and a part
ROOT = Path(__file__).resolve().parents[3]


def start(file: Path, manifest: Manifest) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.unit.datasets.victim", str(file), manifest.url]
    return subprocess.Popen([*command, str(LAST_STEP)], cwd=ROOT, stdin=subprocess.PIPE, text=True)


def go(victim: "subprocess.Popen[str]", world_size: int, threads: int) -> None:
    assert victim.stdin is not None
    victim.stdin.write(f"{world_size} {threads}\n")
    victim.stdin.flush()


def test_a_hundred_kills_change_nothing(packed: tuple[Store, Manifest], tmp_path: Path) -> None:
    manifest = packed[1]
    unbroken = start(tmp_path / "unbroken", manifest)
    go(unbroken, 1, 1)
    assert unbroken.wait(200) == 0
    expected = lines_of((tmp_path / "unbroken").read_text())
    assert len(expected) == LAST_STEP

    choose = random.Random(7)
    broken = tmp_path / "broken"
    broken.touch()
    waiting: deque[subprocess.Popen[str]] = deque()  # they import while others run
    kills = 0
    reached: list[int] = []
    try:
        while (step := len(lines_of(broken.read_text()))) < LAST_STEP:
            while len(waiting) < 3:
                waiting.append(start(broken, manifest))
            victim = waiting.popleft()
            go(victim, choose.choice([1, 2, 3, 6]), choose.choice([0, 1, 2]))
            if kills < KILLS and step < LAST_STEP - 60:
                # From the moment it is asked to begin to some steps later.
                limit = step + choose.choice([0, 0, 1, 3, 8])
                deadline = time.monotonic() + 60
                while len(lines_of(broken.read_text())) < limit and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(choose.uniform(0, 0.03))
                victim.kill()
                victim.wait(10)
                kills += 1
                reached.append(len(lines_of(broken.read_text())) - step)
            else:
                assert victim.wait(200) == 0
    finally:
        for victim in waiting:
            victim.kill()
            victim.wait(10)
    assert kills == KILLS
    assert sum(1 for steps in reached if steps) > 30  # many died in the midst of it
    assert lines_of(broken.read_text()) == expected
