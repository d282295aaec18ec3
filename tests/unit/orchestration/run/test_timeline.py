"""Goodput, interruptions and hours of a run's attempts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.storage.store import Store
from orchestration.run.timeline import (
    Attempt,
    device_history,
    goodput,
    interruptions,
    lifetime_tags,
    load_attempts,
    rank_hours,
    save_attempts,
    useful_steps,
)


def attempt(began: float, ended: float, steps: tuple[int, int], **more: object) -> Attempt:
    values = {"ranks": 2, "trained_s": ended - began, "ended_by": ""} | more
    return Attempt(began=began, ended=ended, from_step=steps[0], to_step=steps[1], **values)  # type: ignore[arg-type]


def test_an_undisturbed_run() -> None:
    attempts = [attempt(100, 200, (0, 50), trained_s=80.0)]
    assert goodput(attempts) == pytest.approx(0.8)
    assert rank_hours(attempts) == pytest.approx(200 / 3600)
    assert interruptions(attempts) == []
    assert lifetime_tags(attempts)["rayception.attempts"] == "1"


def test_repeated_steps_and_waiting_are_not_goodput() -> None:
    """The last 10 of the first attempt's 50 steps are lost, and 20 s pass."""
    attempts = [
        attempt(0, 100, (0, 50), ended_by="rank 1: got a worker or node that died"),
        attempt(120, 200, (40, 80), ranks=1),
    ]
    assert useful_steps(attempts) == [40, 40]
    assert goodput(attempts) == pytest.approx((80 + 80) / 200)
    assert interruptions(attempts) == [("rank 1: got a worker or node that died", 20.0, 10)]
    assert rank_hours(attempts) == pytest.approx((200 + 80) / 3600)
    assert "20 s, 10 steps again" in lifetime_tags(attempts)["rayception.faults"]
    assert lifetime_tags(attempts)["rayception.world_sizes"] == "2 1"


def test_nothing_yet() -> None:
    assert goodput([]) == 0.0
    assert useful_steps([]) == []
    assert lifetime_tags([])["rayception.attempts"] == "0"


histories = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)  # it writes a file
@given(histories)
def test_any_history_keeps_its_bounds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float, int, int]]
) -> None:
    now, attempts = 0.0, []
    for gap, length, start, steps in rows:
        attempts.append(attempt(now + gap, now + gap + length, (start, start + steps)))
        now += gap + length
    assert 0.0 <= goodput(attempts) <= 1.0
    store, run_url = Store(), tmp_path_factory.getbasetemp().as_uri()
    save_attempts(store, run_url, attempts)
    assert load_attempts(store, run_url) == attempts
    assert len(interruptions(attempts)) == len(attempts) - 1
    assert all(
        0 <= useful <= each.to_step - each.from_step
        for useful, each in zip(useful_steps(attempts), attempts, strict=True)
    )


def test_a_run_that_moves_says_from_where_on_it_is_equal_up_to_rounding_only() -> None:
    on_a100 = [attempt(0, 9, (0, 50), devices="A100"), attempt(9, 19, (40, 90), devices="A100")]
    assert device_history(on_a100) == "A100"
    never_trained, on_h100 = attempt(19, 20, (90, 90)), attempt(20, 30, (80, 1200), devices="H100")
    moved = [*on_a100, never_trained, on_h100, attempt(30, 40, (1200, 1300), devices="A100")]
    assert lifetime_tags(moved)["rayception.devices"] == (
        "A100; H100 from step 81 on, equal up to rounding from there; "
        "A100 from step 1,201 on, equal up to rounding from there"
    )


def test_a_kind_of_device_whose_steps_were_all_repeated_left_no_trace() -> None:
    attempts = [attempt(0, 9, (0, 50), devices="A100"), attempt(9, 12, (40, 45), devices="H100")]
    assert device_history([*attempts, attempt(12, 30, (40, 90), devices="A100")]) == "A100"


def test_what_an_earlier_version_trained_on_is_unknown() -> None:
    earlier = attempt(0, 9, (0, 50))
    assert device_history([earlier]) == device_history([]) == ""
    resumed = [earlier, attempt(9, 19, (50, 90), devices="H100")]
    assert device_history(resumed).startswith("unknown; H100 from step 51 on")
