"""What attempts come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.run.timeline import (
    Attempt,
    costs,
    from_json,
    goodput,
    kept_steps,
    lifetime_tags,
    rank_hours,
    to_json,
)


def attempt(began: float, ended: float, steps: tuple[int, int], **more: object) -> Attempt:
    values = {"ranks": 2, "trained_s": ended - began, "ended_by": ""} | more
    return Attempt(began=began, ended=ended, from_step=steps[0], to_step=steps[1], **values)  # type: ignore[arg-type]


def test_a_calm_run() -> None:
    one = [attempt(100, 200, (0, 50), trained_s=80.0)]
    assert goodput(one) == pytest.approx(0.8)
    assert rank_hours(one) == pytest.approx(200 / 3600)
    assert costs(one) == []
    assert lifetime_tags(one)["rayception.attempts"] == "1"


def test_what_is_done_again_and_waited_for_is_no_use() -> None:
    """The first attempt's last 10 of 50 steps are lost, then 20 s go by."""
    life = [
        attempt(0, 100, (0, 50), ended_by="rank 1: got a worker or node that died"),
        attempt(120, 200, (40, 80), ranks=1),
    ]
    assert kept_steps(life) == [40, 40]
    assert goodput(life) == pytest.approx((80 + 80) / 200)
    assert costs(life) == [("rank 1: got a worker or node that died", 20.0, 10)]
    assert rank_hours(life) == pytest.approx((200 + 80) / 3600)
    assert "20 s, 10 steps again" in lifetime_tags(life)["rayception.faults"]
    assert lifetime_tags(life)["rayception.world_sizes"] == "2 1"


def test_nothing_yet() -> None:
    assert goodput([]) == 0.0
    assert kept_steps([]) == []
    assert lifetime_tags([])["rayception.attempts"] == "0"


lives = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(0, 99), st.integers(0, 99)),
    min_size=1,
    max_size=6,
)


@given(lives)
def test_any_life_keeps_its_bounds(rows: list[tuple[float, float, int, int]]) -> None:
    at, life = 0.0, []
    for gap, length, begin, steps in rows:
        life.append(attempt(at + gap, at + gap + length, (begin, begin + steps)))
        at += gap + length
    assert 0.0 <= goodput(life) <= 1.0
    assert from_json(to_json(life)) == life
    assert len(costs(life)) == len(life) - 1
    assert all(
        0 <= kept <= one.to_step - one.from_step
        for kept, one in zip(kept_steps(life), life, strict=True)
    )
