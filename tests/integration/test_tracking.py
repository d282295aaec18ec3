"""Metrics and MLflow's outages: against the real server, killed and started again."""

import json
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from datasets.errors import StoreError
from datasets.storage.store import Entry, Store
from orchestration.driver.run import Run
from orchestration.driver.run_start import abort_run
from orchestration.errors import ServiceError
from orchestration.job.load import load_job
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import Dataset, close_run, log_datasets, log_file, open_run
from orchestration.tracking.table_view import VIEW_TAG
from orchestration.tracking.writer import MetricWriter, send_outbox_points
from tests.integration.conftest import ROOT, Home
from tests.waiting import wait_for


def begin(home: Home) -> tuple[MlflowClient, RunRef]:
    uri = home.use_mlflow()
    params = {f"section.field{i}": i for i in range(120)}  # more than one batch holds
    run = open_run(uri, experiment="tracking", name="a-run", params=params, tags={"k": "v"})
    return MlflowClient(tracking_uri=uri), run


def history(client: MlflowClient, run: RunRef, key: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run.run_id, key)]


def test_run_opens_as_model_training_and_closes(shared_home: Home) -> None:
    client, run = begin(shared_home)
    log_file(run, "job.yaml", b"name: x")
    close_run(run, "FINISHED")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert len(found.data.params) == 120
    tags = client.get_experiment(run.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"/runs/{run.run_id}/model-metrics" in run.page


def test_data_are_told_by_digest_and_found_where_they_lie(shared_home: Home) -> None:
    client, run = begin(shared_home)
    urls = ["s3://data/digits/train", "file:///data/val", "https://host.example/val-{0..3}.tar"]
    log_datasets(
        run,
        [
            Dataset(name=url[:4], digest=f"d{i}", source=url, context="training", profile={"n": i})
            for i, url in enumerate(urls)
        ],
    )
    inputs = {one.dataset.digest: one for one in client.get_run(run.run_id).inputs.dataset_inputs}
    sources = [mlflow.data.get_source(inputs[f"d{i}"].dataset) for i in range(len(urls))]
    assert [str(getattr(one, "uri", None) or one.url) for one in sources] == urls
    assert inputs["d1"].tags[0].value == "training"


class GoneStore(Store):
    """Storage that is away for good."""

    def list(self, prefix: str) -> list[Entry]:
        raise StoreError(f"{prefix}: got no answer; the storage answers. Look for it.")

    def read(self, url: str) -> bytes:
        raise StoreError(f"{url}: got no answer; the storage answers. Look for it.")


def test_a_run_that_its_storage_ended_has_ended_in_mlflow_too(shared_home: Home) -> None:
    client, run = begin(shared_home)
    job = load_job(ROOT / "jobs" / "quickstart.yaml")
    ended = Run(job=job, store=GoneStore(), url="s3://runs/gone", mlflow=run)
    abort_run(ended, "FAILED", {"rayception.attempts": "2"})
    found = client.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["rayception.attempts"] == "2"


def test_an_experiment_that_others_made_gets_our_columns(shared_home: Home) -> None:
    client, _ = begin(shared_home)
    made = client.create_experiment("theirs", tags={VIEW_TAG: "an older version's"})
    open_run(client.tracking_uri, experiment="theirs", name="a", params={}, tags={})
    tags = client.get_experiment(made).tags
    assert json.loads(tags[VIEW_TAG])["name"] == "rayception"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_outage_loses_no_point_and_doubles_none(shared_home: Home, tmp_path: Path) -> None:
    client, run = begin(shared_home)
    box = Outbox(Store(), (tmp_path / "run").as_uri())
    writer = MetricWriter(run, box, "rank-0")
    for step in range(1, 201):
        writer.log(step, {"train/loss": 1.0 / step, "train/lr": 0.1})
    wait_for(lambda: not writer.unsent(), 20)
    shared_home.kill("mlflow")
    slowest = 0.0
    for step in range(201, 2501):
        began = time.monotonic()
        writer.log(step, {"train/loss": 1.0 / step, "train/lr": 0.1})
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0  # a step never waits for the server
    writer.flush()  # what a checkpoint waits for
    assert sum(map(len, box.points("rank-0").values())) == 2 * 2300
    writer.log(2501, {"train/loss": 1.0 / 2501, "train/lr": 0.1})
    assert shared_home.call("stack", "up").returncode == 0
    assert writer.close() == 0
    for key in ("train/loss", "train/lr"):
        assert [step for step, _ in history(client, run, key)] == list(range(1, 2502))
    assert not box.points("rank-0")


def test_a_restart_repeats_no_step_and_sends_the_outbox_first(
    shared_home: Home, tmp_path: Path
) -> None:
    """A killed attempt had logged to step 9, and kept a point of step 6 that MLflow did not take.
    The next one goes on after step 6."""
    client, run = begin(shared_home)
    box = Outbox(Store(), (tmp_path / "run").as_uri())
    first = MetricWriter(run, box, "rank-0")
    for step in range(1, 10):
        first.log(step, {"train/loss": float(step)})
    assert first.close() == 0
    box.add_points("rank-0", [("val/top1", 50.0, 1_700_000_000_000, 6)])
    second = MetricWriter(run, box, "rank-0")
    for step in range(7, 13):
        second.log(step, {"train/loss": float(step), "val/top1": 60.0})
    assert second.close() == 0
    assert history(client, run, "train/loss") == [(s, float(s)) for s in range(1, 13)]
    assert history(client, run, "val/top1")[:2] == [(6, 50.0), (7, 60.0)]
    assert not box.points()


def test_what_a_dead_writer_kept_is_sent_once_by_the_next_or_by_sync(
    shared_home: Home, tmp_path: Path
) -> None:
    client, run = begin(shared_home)
    box = Outbox(Store(), (tmp_path / "run").as_uri())
    first = MetricWriter(run, box, "rank-0")
    first.log(1, {"train/loss": 1.0})
    wait_for(lambda: not first.unsent(), 20)
    shared_home.kill("mlflow")
    first.log(2, {"train/loss": 2.0})
    first.flush()
    second = MetricWriter(run, box, "rank-0")  # the first one's process is gone
    for step in (2, 3):  # step 2 is worked again
        second.log(step, {"train/loss": float(step)})
    second.flush()
    assert [p[3] for points in box.points("rank-0").values() for p in points] == [2, 3]
    with pytest.raises(ServiceError, match=r"tracking\.uri: got http"):
        send_outbox_points(run, box)
    assert shared_home.call("stack", "up").returncode == 0
    assert second.close() == 0
    assert send_outbox_points(run, box) == 0
    now = int(time.time() * 1000)
    box.add_points("rank-0", [("train/loss", 3.5, now, 3), ("train/loss", 4.0, now, 4)])
    assert send_outbox_points(run, box) == 2  # the server has step 3 already
    assert history(client, run, "train/loss") == [(s, float(s)) for s in range(1, 5)]


@pytest.mark.exhaustive
def test_two_runs_at_once_through_an_outage(shared_home: Home, tmp_path: Path) -> None:
    """Each run gets its own points, each once."""
    client, first = begin(shared_home)
    _, second = begin(shared_home)
    writers = [
        MetricWriter(run, Outbox(Store(), (tmp_path / run.run_id).as_uri()), "rank-0")
        for run in (first, second)
    ]
    for step in range(1, 5001):
        for sign, writer in zip((1, -1), writers, strict=True):
            writer.log(step, {"train/loss": sign * step})
        if step == 2500:
            shared_home.kill("mlflow")
    assert shared_home.call("stack", "up").returncode == 0
    for sign, run, writer in zip((1, -1), (first, second), writers, strict=True):
        writer.close()
        assert send_outbox_points(run, Outbox(Store(), (tmp_path / run.run_id).as_uri())) >= 0
        assert history(client, run, "train/loss") == [(s, float(sign * s)) for s in range(1, 5001)]
