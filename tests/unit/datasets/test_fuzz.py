"""Thirty thousand broken archives, images and labels: each ends in data or in one line."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COUNT = 15_000  # of each of two seeds


def test_broken_bytes_crash_and_hang_nothing() -> None:
    came: dict[str, int] = {}
    for seed in (1, 2):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "tests.unit.datasets.fuzz", str(COUNT),
             str(seed)],
            cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        for key, count in json.loads(done.stdout).items():
            came[key] = came.get(key, 0) + count
    assert sum(came.values()) == 2 * COUNT
    for kind in ("tar", "crop", "image"):  # the changes are neither all harmless nor all fatal
        assert came[f"{kind} whole"] > 100, came
        assert came[f"{kind} refused"] > 500, came
