"""Where a start's time goes: told once, in order, by driver, board and timeline."""

import time
from pathlib import Path

import pytest

from orchestration.report.html import timeline_page
from orchestration.run.checkpoint import newest_summary, save_checkpoint
from orchestration.run.phases import Phases, split
from orchestration.run.timeline import Attempt, from_json, to_json
from orchestration.worker.progress_actor import ProgressActor
from tests.unit.orchestration.run.test_checkpoints import state


def test_every_second_is_of_one_phase() -> None:
    began = time.time() - 100
    phases = Phases(began)
    phases.end("command")
    time.sleep(0.01)
    phases.end("ray")
    phases.end("command")  # again: it adds up
    assert list(phases.seconds) == ["command", "ray"]
    assert sum(phases.seconds.values()) == pytest.approx(time.time() - began, abs=1.0)
    assert 0.01 <= phases.seconds["ray"] < 50


def test_the_process_began_before_this_test() -> None:
    phases = Phases.of_process()
    phases.end("command")
    assert phases.seconds["command"] > 0


def test_training_is_split_by_what_the_ranks_say() -> None:
    assert split(10.0, {"workers": 3.0, "evaluation": 2.0}) == {
        "workers": 3.0, "evaluation": 2.0, "steps": 5.0,
    }  # fmt: skip
    assert split(1.0, {"workers": 3.0})["steps"] == 0.0  # two clocks


def test_the_board_counts_an_attempt_from_its_begin_to_its_last_rank() -> None:
    progress_actor = ProgressActor()
    progress_actor.start_attempt()
    progress_actor.join(1, "node")
    time.sleep(0.02)
    progress_actor.join(0, "node")
    progress_actor.add_phase_seconds("evaluation", 1.5)
    progress_actor.add_phase_seconds("evaluation", 1.0)
    told = progress_actor.phases()
    assert told["evaluation"] == 2.5
    assert 0.02 <= told["workers"] < 5
    progress_actor.start_attempt()
    assert progress_actor.phases() == {}


def test_a_timeline_keeps_phases_and_shows_the_start() -> None:
    one = Attempt(
        began=0.0, ended=60.0, ranks=2, from_step=0, to_step=9, trained_s=40.0, ended_by="done",
        phases={"ray": 0.5, "workers": 7.25},
    )  # fmt: skip
    assert from_json(to_json([one])) == [one]
    page = timeline_page([one], "a-run")
    assert 'title="ray 0.5 s, workers 7.2 s">7.2 s</td>' in page
    before = b'[{"began": 0, "ended": 1, "ranks": 1, "from_step": 0, "to_step": 1, '
    before += b'"trained_s": 1, "ended_by": ""}]'  # of an earlier version
    assert from_json(before)[0].phases == {}


def test_a_checkpoint_says_its_metrics_without_its_tensors(tmp_path: Path) -> None:
    from dataclasses import replace

    from datasets.storage.store import Store

    store, url = Store(), tmp_path.as_uri()
    assert newest_summary(store, url) is None
    save_checkpoint(store, url, replace(state(9), metrics={"val/top1": 50.0, "val/loss": 1.0}))
    save_checkpoint(store, url, state(10))
    (tmp_path / "step-000000010" / "state.pt").write_bytes(b"torn")  # it does not count
    found = newest_summary(store, url)
    assert found is not None
    assert (found.step, found.top1, found.metrics["val/loss"]) == (9, 50.0, 1.0)
    index = tmp_path / "step-000000009" / "checkpoint.json"
    text = index.read_text()
    index.write_text(text.replace('"metrics"', '"of another version"'))
    assert newest_summary(store, url) == found  # read from the state then
