"""Runs are compared to the last bit."""

import math

import pytest

from orchestration.report.same_bits import same_bits

STEPS = [(step, 1.0 / step) for step in range(1, 6)]
DIGEST = "step 5: ab12"


def test_equal_runs() -> None:
    history = {"train/loss": STEPS, "val/top1": [(5, 50.0)]}
    result = same_bits([history, history, history], [DIGEST] * 3)
    assert str(result) == (
        "equal to the last bit over all 5 steps; equal digests of the checkpoints of step 5"
    )


@pytest.mark.parametrize("key", ["train/loss", "train/grad_norm", "val/loss"])
def test_the_first_step_and_metric_that_differ_are_named(key: str) -> None:
    first = {"train/loss": STEPS} | {key: STEPS}
    second = dict(first)
    second[key] = [(s, math.nextafter(v, 2) if s >= 3 else v) for s, v in STEPS]
    result = same_bits([first, second], [DIGEST, "step 5: cd34"])
    assert (result.steps, result.step, result.metric) == (5, 3, key)
    assert str(result).endswith("; different digests of the checkpoints of step 5")


def test_only_common_steps_and_digests_of_one_step_are_compared() -> None:
    short = {"train/loss": STEPS[:3]}
    result = same_bits([{"train/loss": STEPS}, short], [DIGEST, "step 3: ab12"])
    assert str(result) == "equal to the last bit over all 3 steps"
    assert same_bits([short, short], [None, DIGEST]).digests_equal is None
    assert str(same_bits([short, {}], [None, None])) == "no step in common"


def test_a_loss_that_is_no_number_is_equal_to_itself() -> None:
    history = {"train/loss": [(1, math.nan)]}
    assert same_bits([history, history], [None, None]).step is None
