"""The GPU check's dry run: each part runs on a CPU, so that the check follows the code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks

ROOT = Path(__file__).resolve().parents[3]
CHECK = ROOT / "infra" / "gpu-check" / "check.py"


@pytest.mark.parametrize(
    "part",
    [
        "environment",
        "numerics",
        "torchvisions",
        "ours",
        "groups",
        "same_bits",
        "kernels",
        "syncs",
        "copies",
        "data",
    ],
)
def test_each_part_answers_in_json(part: str) -> None:
    if part == "environment":  # a process of its own, as run.sh starts it
        done = subprocess.run(
            [sys.executable, str(CHECK), part, "--tiny"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
    else:
        done = forks.script(CHECK, part, "--tiny")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["seconds"] >= 0
    result = report[part]
    if part == "copies":
        assert result == {"batches": 4, "wrong": 0}
    if part in ("ours", "groups"):
        assert result["2x4"]["images_per_second"] > 0
    if part == "same_bits":
        assert result["deterministic"]["two_are_equal"]
        assert result["deterministic"]["restarted_is_equal"]
    if part == "numerics":
        assert len(result["losses_of_one_batch"]["fp32"]) == 3
