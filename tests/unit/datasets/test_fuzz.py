"""Thirty thousand broken archives, images and labels: each gives data or one error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("seeds", "count"),  # per seed
    [
        pytest.param((3,), 4_000, id="some"),
        pytest.param((1, 2), 15_000, marks=pytest.mark.exhaustive, id="many"),
    ],
)
def test_broken_bytes_crash_and_hang_nothing(seeds: tuple[int, ...], count: int) -> None:
    outcomes: dict[str, int] = {}
    total = len(seeds) * count
    for seed in seeds:
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "tests.unit.datasets.fuzz", str(count),
             str(seed)],
            cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        for key, times in json.loads(done.stdout).items():
            outcomes[key] = outcomes.get(key, 0) + times
    assert sum(outcomes.values()) == total
    for kind in ("tar", "crop", "image"):  # the changes are neither all harmless nor all fatal
        assert outcomes[f"{kind} whole"] > total / 300, outcomes
        assert outcomes[f"{kind} refused"] > total / 60, outcomes
