"""MLflow goes away in the middle of a run, for a while or until after its end."""

import contextlib
import json
import signal
import time
from typing import Any

import psutil
import pytest

from orchestration.checkpoint import checkpoint_names
from tests.integration.conftest import Home
from tests.integration.quickstart.conftest import JOB, Finished
from tests.integration.quickstart.test_resume import (
    SHORT,
    client,
    steps_of,
    store_of,
    wait_for_step,
)

AWAY_S = 60.0


def points_of(home: Home, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric that follows from the job alone, in the order of MLflow."""
    found: Any = client(home)
    keys = [
        key
        for key in found.get_run(run_id).data.metrics
        if key in ("train/loss", "train/lr", "train/grad_norm", "train/epoch")
        or (key.startswith(("val/", "val_ema/")) and key != "val/seconds")
    ]
    return {
        key: sorted((p.step, p.value) for p in found.get_metric_history(run_id, key))
        for key in keys
    }


@pytest.mark.timeout(600)
def test_a_killed_worker_and_services_leave_no_trace(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the quickstart once more: a worker is killed, then MLflow, then the store, each started
    again where it is a service. Every point of every metric is in MLflow once, and bitwise the
    value that it has in the run to which nothing happened."""
    home = finished.home
    store = store_of(home, monkeypatch)
    process = home.start("run", JOB)
    url = wait_for_step(home, store, process, 45)
    next(p for p in home.processes() if "RayTrainWorker" in p.name()).send_signal(signal.SIGKILL)
    wait_for_step(home, store, process, 90)
    port = str(home.state["ports"]["mlflow"])
    home.kill("mlflow")
    wait_for_step(home, store, process, 135)
    home.kill("s3")
    time.sleep(8)
    assert process.poll() is None, (home.folder / "stderr").read_text()
    up = home.call("stack", "up", "--mlflow-port", port)
    assert up.returncode == 0, up.stderr
    wait_for_step(home, store, process, 180)
    process.send_signal(signal.SIGINT)  # half of it will do
    assert process.wait(120) == 130, (home.folder / "stderr").read_text()
    assert "restart 1 of 3" in (home.folder / "stdout").read_text()
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]
    run = client(home).get_run(run_id)
    assert run.info.status == "KILLED"
    assert int(run.data.tags["rayception.attempts"]) >= 2
    last = steps_as_if_nothing_had_happened(home, run_id, finished)
    assert 180 <= last < 360
    assert not list(store.list(f"{url}/outbox/"))
    assert len(checkpoint_names(store, url)) <= 4  # the newest three, and the best


def steps_as_if_nothing_had_happened(home: Home, run_id: str, finished: Finished) -> int:
    """-> the run's last step."""
    found = points_of(home, run_id)
    assert len(found) == 10
    last = found["train/loss"][-1][0]
    assert [step for step, _ in found["train/loss"]] == list(range(1, last + 1))
    undisturbed = points_of(finished.home, finished.outcome["run"]["run_id"])
    assert found == {
        key: [(step, value) for step, value in points if step <= last]
        for key, points in undisturbed.items()
    }
    return last


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_mlflow_killed_for_a_minute_leaves_no_trace_in_the_metrics(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quickstart once more: its server is killed with -9 and started again. Every point is
    there once, with the value that it has in the run to which nothing happened."""
    home = finished.home
    store = store_of(home, monkeypatch)
    process = home.start("run", JOB)
    url = wait_for_step(home, store, process, 45)
    home.kill("mlflow")
    began = time.monotonic()
    wait_for_step(home, store, process, 135)
    signal_ranks(home, signal.SIGSTOP)  # a fast machine would be done before the server is back
    time.sleep(max(0.0, AWAY_S - (time.monotonic() - began)))
    assert process.poll() is None, "the run ended before its server came back"
    up = home.call("stack", "up", "--mlflow-port", str(home.state["ports"]["mlflow"]))
    assert up.returncode == 0, up.stderr
    signal_ranks(home, signal.SIGCONT)
    assert process.wait(300) == 0, (home.folder / "stderr").read_text()
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]
    run = client(home).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["rayception.attempts"] == "1"
    assert steps_as_if_nothing_had_happened(home, run_id, finished) == 360
    assert not list(store.list(f"{url}/outbox/"))


def signal_ranks(home: Home, number: signal.Signals) -> None:
    for process in home.processes():
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in process.name():
                process.send_signal(number)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_mlflow_away_until_the_end_and_the_driver_killed_in_between(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is killed and stays away while the driver is killed, the run goes on and finishes;
    later `sync` tells it everything, each step once."""
    assert home.call("stack", "up").returncode == 0
    store = store_of(home, monkeypatch)
    uri = f"http://127.0.0.1:{home.state['ports']['mlflow']}"
    process = home.start("run", *SHORT, f"tracking.uri={uri}")
    url = wait_for_step(home, store, process, 45)
    home.kill("mlflow")
    wait_for_step(home, store, process, 90)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    done = home.call("resume", url, "--endpoint-url", "local", timeout_s=400)
    assert done.returncode == 0, done.stderr
    assert f"`rayception sync {url}` sends MLflow what is left" in " ".join(done.stdout.split())
    refused = home.call("sync", url, "--endpoint-url", "local")
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    again = home.call("resume", url, "--endpoint-url", "local")
    assert again.returncode == 2  # complete, though MLflow does not know
    port = uri.rpartition(":")[2]
    up = home.call("stack", "up", "--mlflow-port", port)
    assert up.returncode == 0, up.stderr
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]
    assert client(home).get_run(run_id).info.status == "RUNNING"
    synced = home.call("sync", url, "--endpoint-url", "local", "--json")
    assert synced.returncode == 0, synced.stderr
    assert json.loads(synced.stdout)["ended"] == "FINISHED"
    run = client(home).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["rayception.model"].startswith("models:/")
    assert steps_of(home, run_id) == list(range(1, 181))
    assert run.data.metrics["val_ema/top1"] > 80
    assert json.loads(home.call("sync", url, "--endpoint-url", "local", "--json").stdout) == {
        "points": 0, "files": 0, "ended": "",
    }  # fmt: skip
    # Nobody can say now that it is complete; what lies in storage says that nothing is to be done.
    home.kill("mlflow")
    life = store.read(f"{url}/timeline.json")
    idle = home.call("resume", url, "--endpoint-url", "local", timeout_s=200)
    assert idle.returncode == 0, idle.stderr
    assert "step 1/" not in idle.stdout
    assert len(json.loads(store.read(f"{url}/timeline.json"))) == len(json.loads(life))
    assert home.call("stack", "up", "--mlflow-port", port).returncode == 0
    assert home.call("sync", url, "--endpoint-url", "local").returncode == 0
    after = client(home).get_run(run_id)
    assert after.info.status == "FINISHED"
    assert after.data.tags["rayception.model"] == run.data.tags["rayception.model"]
    assert home.call("stack", "down", "--force").returncode == 0
