"""MLflow goes away in the middle of a run, for a while or until after its end."""

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.run.checkpoint import checkpoint_names
from orchestration.run.timeline import load_attempts
from tests.integration.conftest import Home
from tests.integration.quickstart.conftest import JOB, Finished
from tests.integration.quickstart.test_resume import (
    SHORT,
    client,
    steps_of,
    store_of,
    wait_for_step,
)
from tests.waiting import BUSY, wait_for

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


def test_everything_that_dies_leaves_no_trace(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The quickstart once more. A worker is killed. The run is resumed while its driver lives,
    which leaves it alone then. MLflow and the store are killed and started again; MLflow is killed
    again, and the second driver with it. A third goes on to the end on another number of ranks,
    and `sync` tells MLflow when it is back. Every point of every metric is there once, and bitwise
    the value that it has in the run to which nothing happened; so is all of the last checkpoint."""
    home, to_store = finished.home, ("--endpoint-url", "local")
    store = store_of(home, monkeypatch)
    port = str(home.state["ports"]["mlflow"])
    # By its URL: what is called local would be started again.
    first = home.start("run", JOB, f"tracking.uri=http://127.0.0.1:{port}")
    url = wait_for_step(home, store, first, 45)
    home.processes("RayTrainWorker")[0].send_signal(signal.SIGKILL)
    wait_for_step(home, store, first, 90)
    assert "packed" not in (home.folder / "stdout").read_text()  # the data are there already
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]

    other = Home(tmp_path)
    other.environment = home.environment
    second = other.start("resume", url, *to_store)
    assert first.wait(120 * BUSY) == 3
    said = " ".join((home.folder / "stderr").read_text().split())
    assert f"{url}: got another driver, process {second.pid} on " in said
    assert "restart 1 of 3" in (home.folder / "stdout").read_text()
    assert client(home).get_run(run_id).info.status == "RUNNING"
    told = other.folder / "stdout"  # the first may have come as far before it left
    wait_for(
        lambda: "\nstep " in told.read_text() or second.poll() is not None, 240, told.read_text
    )
    wait_for_step(other, store, second, 135)
    home.kill("mlflow")
    home.kill("s3")
    time.sleep(8)
    assert second.poll() is None, (other.folder / "stderr").read_text()
    assert home.call("stack", "up", "--mlflow-port", port).returncode == 0
    wait_for_step(other, store, second, 225)
    assert len(checkpoint_names(store, url)) <= 4  # the newest three, and the best
    home.kill("mlflow")
    second.send_signal(signal.SIGKILL)
    second.wait(30 * BUSY)

    refused = home.call("resume", url, "optim.lr=0.1", *to_store)
    assert refused.returncode == 2
    assert "optim.lr: got 0.1, but the run began with 0.045" in refused.stderr
    third = ("resume", url, "cluster.accelerators=CPU:1", *to_store, "--json")
    done = home.call(*third, timeout_s=400)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["run"]["run_id"] == run_id
    assert outcome["metrics"] == finished.outcome["metrics"]
    assert outcome["digest"] == finished.outcome["digest"]
    assert outcome["model_uri"] is None
    assert home.call("stack", "up", "--mlflow-port", port).returncode == 0
    assert client(home).get_run(run_id).info.status == "RUNNING"
    synced = home.call("sync", url, *to_store, "--json")
    assert synced.returncode == 0, synced.stderr
    assert json.loads(synced.stdout)["ended"] == "FINISHED"
    run = client(home).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["rayception.model"].startswith("models:/")
    assert run.data.tags["rayception.now.cluster.accelerators"] == "CPU:1"
    assert int(run.data.tags["rayception.attempts"]) >= 4
    assert steps_as_if_nothing_had_happened(home, run_id, finished) == 360
    assert not list(store.list(f"{url}/outbox/"))
    both = (run_id, finished.outcome["run"]["run_id"])
    bits = json.loads(home.call("compare", *both, "--json").stdout)["bits"]
    assert bits["message"] == (
        "equal to the last bit over all 360 steps; equal digests of the checkpoints of step 360"
    )
    again = home.call("resume", url, *to_store)
    assert again.returncode == 2
    assert "got a run that is complete" in again.stderr
    assert "fork" in again.stderr


def steps_as_if_nothing_had_happened(home: Home, run_id: str, finished: Finished) -> int:
    """-> the run's last step."""
    found = points_of(home, run_id)
    assert len(found) == 10
    last = found["train/loss"][-1][0]
    assert [step for step, _ in found["train/loss"]] == list(range(1, last + 1))
    undisturbed = points_of(finished.home, finished.outcome["run"]["run_id"])
    assert found.keys() == undisturbed.keys()
    for key, points in undisturbed.items():
        assert found[key] == [(step, value) for step, value in points if step <= last], key
    return last


@pytest.mark.exhaustive
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
    assert process.wait(300 * BUSY) == 0, (home.folder / "stderr").read_text()
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]
    run = client(home).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["rayception.attempts"] == "1"
    assert steps_as_if_nothing_had_happened(home, run_id, finished) == 360
    assert not list(store.list(f"{url}/outbox/"))


def signal_ranks(home: Home, number: signal.Signals) -> None:
    for process in home.processes("RayTrainWorker"):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


@pytest.mark.exhaustive
def test_mlflow_away_until_the_end_and_the_driver_killed_in_between(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is killed and stays away while the driver is killed, the run goes on and finishes;
    later `sync` tells it everything, each step once."""
    assert home.call("stack", "up").returncode == 0
    store = store_of(home, monkeypatch)
    uri = home.use_mlflow()
    process = home.start("run", *SHORT, f"tracking.uri={uri}")
    url = wait_for_step(home, store, process, 45)
    home.kill("mlflow")
    wait_for_step(home, store, process, 90)
    process.send_signal(signal.SIGKILL)
    process.wait(30 * BUSY)
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
    life = load_attempts(store, url)
    idle = home.call("resume", url, "--endpoint-url", "local", timeout_s=200)
    assert idle.returncode == 0, idle.stderr
    assert "step 1/" not in idle.stdout
    assert len(load_attempts(store, url)) == len(life)
    assert home.call("stack", "up", "--mlflow-port", port).returncode == 0
    assert home.call("sync", url, "--endpoint-url", "local").returncode == 0
    after = client(home).get_run(run_id)
    assert after.info.status == "FINISHED"
    assert after.data.tags["rayception.model"] == run.data.tags["rayception.model"]
    assert home.call("stack", "down", "--force").returncode == 0
