"""Metrics and MLflow's outages: against the real server, killed and started again."""

import time

import psutil
from mlflow.tracking import MlflowClient

from orchestration.tracking.runs import RunRef, close_run, log_text, open_run
from orchestration.tracking.writer import MetricWriter
from tests.integration.conftest import Home
from tests.waiting import wait_for


def begin(home: Home) -> tuple[MlflowClient, RunRef]:
    uri = f"http://127.0.0.1:{home.state['ports']['mlflow']}"
    params = {f"section.field{i}": i for i in range(120)}  # more than one batch holds
    run = open_run(uri, experiment="tracking", name="a-run", params=params, tags={"k": "v"})
    return MlflowClient(tracking_uri=uri), run


def history(client: MlflowClient, run: RunRef, key: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run.run_id, key)]


def test_run_opens_as_model_training_and_closes(shared_home: Home) -> None:
    client, run = begin(shared_home)
    log_text(run, "name: x", "job.yaml")
    close_run(run, "FINISHED")
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert len(found.data.params) == 120
    tags = client.get_experiment(run.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"/runs/{run.run_id}/model-metrics" in run.page


def test_outage_loses_no_point_and_doubles_none(shared_home: Home) -> None:
    client, run = begin(shared_home)
    writer = MetricWriter(run)
    for step in range(1, 201):
        writer.log(step, {"train/loss": 1.0 / step, "train/lr": 0.1})
    wait_for(lambda: not writer.unsent(), 20)
    server = psutil.Process(shared_home.state["processes"]["mlflow"][0])
    for process in [server, *server.children(recursive=True)]:
        process.kill()
    slowest = 0.0
    for step in range(201, 2501):
        began = time.monotonic()
        writer.log(step, {"train/loss": 1.0 / step, "train/lr": 0.1})
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 1.0  # a step never waits for the server
    time.sleep(3)
    assert writer.unsent()[0][3] == 201
    assert shared_home.call("stack", "up").returncode == 0
    assert writer.close() == 0
    for key in ("train/loss", "train/lr"):
        assert [step for step, _ in history(client, run, key)] == list(range(1, 2501))


def test_restart_repeats_no_step_and_brings_back_the_unsent(shared_home: Home) -> None:
    """A killed attempt had logged to step 9; its checkpoint, after step 6, carried the unsent
    point of step 6 of another key. The next attempt walks steps 7.. again."""
    client, run = begin(shared_home)
    first = MetricWriter(run)
    for step in range(1, 10):
        first.log(step, {"train/loss": float(step)})
    assert first.close() == 0
    second = MetricWriter(run, [("val/top1", 50.0, 1_700_000_000_000, 6)])
    for step in range(7, 13):
        second.log(step, {"train/loss": float(step)})
    assert second.close() == 0
    assert history(client, run, "train/loss") == [(s, float(s)) for s in range(1, 13)]
    assert history(client, run, "val/top1") == [(6, 50.0)]
