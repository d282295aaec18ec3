"""A run begins from a finished one's checkpoint; one whose store is away waits for it."""

import json
import re
import signal
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from datasets.storage.store import Store, StoreConfig
from orchestration.run.checkpoint import checkpoint_names, load_checkpoint
from orchestration.run.timeline import load_attempts
from tests.integration.conftest import ROOT, Home
from tests.integration.quickstart.conftest import JOB, Finished
from tests.waiting import BUSY, wait_for

SHORT = (JOB, "schedule.epochs=4", "schedule.warmup_epochs=0.5")


@pytest.fixture
def store(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Store:
    return store_of(finished.home, monkeypatch)


def store_of(home: Home, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", home.state["secrets"]["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", home.state["secrets"]["secret_key"])
    url = f"http://127.0.0.1:{home.state['ports']['s3']}"
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


def client(home: Home) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=home.use_mlflow())


def wait_for_step(home: Home, store: Store, process: Any, step: int) -> str:
    """The folder of the run in `home`'s stdout, once its checkpoint of `step` is whole."""
    stdout = home.folder / "stdout"

    def found() -> str | None:
        name = re.search(r"run (quickstart-\S+) in", stdout.read_text())
        if name is None:
            return None
        url = f"s3://runs/{name[1]}"
        index = f"{url}/step-{step:09d}/checkpoint.json"
        return url if store.exists(index) else None

    wait_for(lambda: found() is not None or process.poll() is not None, 240, stdout.read_text)
    assert process.poll() is None, (home.folder / "stderr").read_text()
    url = found()
    assert url is not None
    return url


def steps_of(home: Home, run_id: str) -> list[int]:
    return [p.step for p in client(home).get_metric_history(run_id, "train/loss")]


@pytest.mark.exhaustive
def test_a_fork_goes_on_from_a_checkpoint_as_a_new_run(finished: Finished, store: Store) -> None:
    """From the end of the quickstart, half an epoch more at another rate."""
    home, source = finished.home, finished.outcome["checkpoint_url"]
    more = ["schedule.epochs=8.5", "schedule.name=constant", "optim.lr=0.002"]
    done = home.call("fork", source, *more, "--endpoint-url", "local", "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["run"]["run_id"] != finished.outcome["run"]["run_id"]
    first = steps_of(home, outcome["run"]["run_id"])
    assert first == list(range(361, 383))
    assert load_checkpoint(store, outcome["checkpoint_url"]).step == 382
    assert outcome["metrics"]["val_ema/top1"] > 95
    for wrong in ("model.width=0.5", "seed=3", "data.global_batch_size=64"):
        refused = home.call("fork", source, wrong, "--endpoint-url", "local")
        assert refused.returncode == 2
        assert "but the checkpoint was made with" in refused.stderr


@pytest.mark.exhaustive
def test_storage_that_is_killed_for_a_while_ends_nothing(finished: Finished, store: Store) -> None:
    """The object store is killed for 12 s and started again: the run waits and goes on; each step
    once in MLflow."""
    home = finished.home
    process = home.start("run", *SHORT)
    url = wait_for_step(home, store, process, 45)
    pid = home.state["processes"]["s3"][0]
    next(p for p in home.processes() if p.pid == pid).send_signal(signal.SIGKILL)
    time.sleep(12)
    assert process.poll() is None, (home.folder / "stderr").read_text()
    up = home.call("stack", "up")
    assert up.returncode == 0, up.stderr
    assert process.wait(300 * BUSY) == 0, (home.folder / "stderr").read_text()
    run_id = json.loads(store.read(f"{url}/run.json"))["run_id"]
    assert client(home).get_run(run_id).info.status == "FINISHED"
    assert steps_of(home, run_id) == list(range(1, 181))
    assert len(checkpoint_names(store, url)) <= 4  # the newest three, and the best


@pytest.mark.exhaustive
def test_a_run_of_an_earlier_version_goes_on(
    finished: Finished, store: Store, tmp_path: Path
) -> None:
    """The stored run (test_stored_run.py in tests/unit says what it is), put where it was: storage,
    and an MLflow run that has its first 20 steps. It goes on from its checkpoint to its end."""
    home, mlflow = finished.home, client(finished.home)
    with tarfile.open(ROOT / "tests/golden/stored-run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    experiment_id = mlflow.get_experiment_by_name("quickstart").experiment_id
    run_id = mlflow.create_run(experiment_id, run_name="stored").info.run_id
    for step in range(1, 21):
        mlflow.log_metric(run_id, "train/loss", 3.0, timestamp=step, step=step)  # before the others
    record = json.loads((tmp_path / "stored-run/run.json").read_text())
    record |= {"experiment_id": experiment_id, "run_id": run_id}
    (tmp_path / "stored-run/run.json").write_text(json.dumps(record))
    url = "s3://runs/stored-20261128-115116-64d5"
    for file in (tmp_path / "stored-run").rglob("*"):
        if file.is_file():
            store.write(f"{url}/{file.relative_to(tmp_path / 'stored-run')}", file.read_bytes())
    done = home.call("resume", url, "--endpoint-url", "local", "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["run"]["run_id"] == run_id
    assert load_checkpoint(store, outcome["checkpoint_url"]).step == 180
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    assert steps_of(home, run_id) == list(range(1, 181))
    assert [attempt.from_step for attempt in load_attempts(store, url)] == [0, 80]
