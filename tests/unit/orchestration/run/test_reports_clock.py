"""Public reports about clocks that go back, tried: a run is resumed on another machine, or after
the time was corrected."""

import time
from pathlib import Path

import pytest

from datasets.storage.store import Store
from orchestration.run.phases import Phases
from orchestration.run.timeline import Attempt, goodput, interruptions, lifetime_tags, rank_hours
from orchestration.tracking.outbox import Outbox

HOUR_S = 3600.0


def attempt(began: float, ended: float, from_step: int, to_step: int) -> Attempt:
    return Attempt(
        began=began, ended=ended, ranks=2, from_step=from_step, to_step=to_step, trained_s=60.0,
        ended_by="killed",
    )  # fmt: skip


def test_no_negative_hours_costs_or_shares() -> None:
    """drn/argus#704: a task of -41 hours."""
    now = 1_700_000_000.0
    before = attempt(now, now + 600, 0, 100)
    after = attempt(now - 5 * HOUR_S, now - 5 * HOUR_S + 600, 90, 200)
    within = attempt(now, now - HOUR_S, 200, 210)
    assert rank_hours([before, after]) == pytest.approx(2 * 2 * 600 / HOUR_S)
    assert rank_hours([before, within]) == pytest.approx(2 * 600 / HOUR_S)
    for attempts in ([before, after], [after, before], [within], [before, within, after]):
        assert 0.0 <= goodput(attempts) <= 1.0
        assert all(seconds >= 0 for _, seconds, _ in interruptions(attempts))
        assert "-" not in lifetime_tags(attempts)["rayception.goodput"]


def test_no_negative_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """elastic/apm-agent-php#27."""
    phases = Phases(start_time=time.time() + 300)
    phases.end("ray")
    monkeypatch.setattr(time, "time", lambda: 1_000.0)
    phases.end("mlflow")
    monkeypatch.setattr(time, "time", lambda: 1_005.0)
    phases.end("steps")
    assert phases.seconds == {"ray": 0.0, "mlflow": 0.0, "steps": 5.0}


def test_what_is_stored_after_the_clock_went_back_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bytewax/bytewax#518. Points of a step that comes before one that was sent are dropped as sent
    already, so the order in the outbox is that of writing, not that of the clocks."""
    box = Outbox(Store(), tmp_path.as_uri())
    for step, now in enumerate((5_000, 2_000, 2_000, 1, 9_000)):
        monkeypatch.setattr(time, "time_ns", lambda now=now: now)
        box.add_points("rank-0", [("train/loss", 1.0, now, step)])
        box.add_points("driver", [("run/goodput", 1.0, now, step)])
    for writer in ("rank-0", "driver"):
        stored = box.points(writer)
        assert [points[0][3] for points in stored.values()] == [0, 1, 2, 3, 4]
        assert len(stored) == 5
