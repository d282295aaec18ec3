"""Wall time by phase: of the driver, in the progress actor, in the timeline."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.storage.checksums import decode_json
from datasets.storage.store import Store
from orchestration.report.html import timeline_page
from orchestration.run.checkpoint import newest_summary, save_checkpoint
from orchestration.run.phases import Phases, split_training
from orchestration.run.timeline import TIMELINE_FILE, Attempt, load_attempts, save_attempts
from orchestration.worker.progress_actor import ProgressActor
from tests.unit.orchestration.run.test_checkpoints import state


def test_every_second_is_of_one_phase() -> None:
    start_time = time.time() - 100
    phases = Phases(start_time)
    phases.end("command")
    time.sleep(0.01)
    phases.end("ray")
    phases.end("command")  # again: it adds up
    assert list(phases.seconds) == ["command", "ray"]
    assert sum(phases.seconds.values()) == pytest.approx(time.time() - start_time, abs=1.0)
    assert 0.01 <= phases.seconds["ray"] < 50


def test_the_process_began_before_this_test() -> None:
    phases = Phases.of_process()
    phases.end("command")
    assert phases.seconds["command"] > 0


def test_training_is_split_by_the_phases_of_the_ranks() -> None:
    assert split_training(10.0, {"workers": 3.0, "evaluation": 2.0}) == {
        "workers": 3.0, "evaluation": 2.0, "steps": 5.0,
    }  # fmt: skip
    assert split_training(1.0, {"workers": 3.0})["steps"] == 0.0  # clocks differ


def test_the_workers_phase_lasts_until_the_last_rank_joins() -> None:
    actor = ProgressActor()
    actor.start_attempt()
    actor.join(1, "node")
    time.sleep(0.02)
    actor.join(0, "node")
    actor.add_phase_seconds("evaluation", 1.5)
    actor.add_phase_seconds("evaluation", 1.0)
    phases = actor.phases()
    assert phases["evaluation"] == 2.5
    assert 0.02 <= phases["workers"] < 5
    assert actor.start_attempt() == 2
    assert actor.phases() == {}


def test_a_timeline_keeps_phases_and_shows_the_start(tmp_path: Path) -> None:
    attempt = Attempt(
        began=0.0, ended=60.0, ranks=2, from_step=0, to_step=9, trained_s=40.0, ended_by="done",
        phases={"ray": 0.5, "workers": 7.25},
    )  # fmt: skip
    store, url = Store(), tmp_path.as_uri()
    save_attempts(store, url, [attempt])
    assert load_attempts(store, url) == [attempt]
    page = timeline_page([attempt], "a-run")
    assert 'title="ray 0.5 s, workers 7.2 s">7.2 s</td>' in page
    old_file = b'[{"began": 0, "ended": 1, "ranks": 1, "from_step": 0, "to_step": 1, '
    old_file += b'"trained_s": 1, "ended_by": ""}]'  # of an earlier version
    store.write(f"{url}/{TIMELINE_FILE}", old_file)
    assert load_attempts(store, url)[0].phases == {}


def test_a_summary_has_the_metrics_without_the_tensors(tmp_path: Path) -> None:
    store, url = Store(), tmp_path.as_uri()
    assert newest_summary(store, url) is None
    save_checkpoint(store, url, replace(state(9), metrics={"val/top1": 50.0, "val/loss": 1.0}))
    save_checkpoint(store, url, state(10))
    (tmp_path / "step-000000010" / "state.pt").write_bytes(b"damaged")
    summary = newest_summary(store, url)
    assert summary is not None
    assert (summary.step, summary.top1, summary.metrics["val/loss"]) == (9, 50.0, 1.0)
    index = tmp_path / "step-000000009" / "checkpoint.json"
    values = decode_json(index.read_bytes())  # of an earlier version: no checksum either
    index.write_text(json.dumps({key: values[key] for key in values if key != "metrics"}))
    assert newest_summary(store, url) == summary  # read from the state then
