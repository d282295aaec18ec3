"""The GPU check's dry run: each part answers on a CPU, so that the check moves with the code."""

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
    ["environment", "numerics", "torchvisions", "ours", "kernels", "syncs", "copies", "data"],
)
def test_each_part_answers_in_json(part: str) -> None:
    if part == "environment":  # one as it is run on a machine with a GPU
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
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seconds"] >= 0
    answer = found[part]
    if part == "copies":
        assert answer == {"batches": 4, "wrong": 0}
    if part == "ours":
        assert answer["2x2"]["images_per_second"] > 0
    if part == "numerics":
        assert len(answer["losses_of_one_batch"]["fp32"]) == 3
