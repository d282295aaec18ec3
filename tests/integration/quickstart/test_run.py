"""The main job, as a newcomer runs it: real Ray, real S3, real MLflow, two gloo ranks."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from datasets.storage.store import Store, StoreConfig
from orchestration.run.checkpoint import load_checkpoint
from orchestration.run.phases import PHASES, STARTUP
from tests.integration.conftest import Home
from tests.integration.quickstart.conftest import JOB, Finished
from tests.integration.quickstart.test_resume import wait_for_step
from tests.waiting import BUSY, wait_for


@pytest.fixture(scope="module")
def store(finished: Finished) -> Store:
    state = finished.home.state
    os.environ["AWS_ACCESS_KEY_ID"] = state["secrets"]["access_key"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = state["secrets"]["secret_key"]
    url = f"http://127.0.0.1:{state['ports']['s3']}"
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


@pytest.fixture(scope="module")
def mlflow_run(finished: Finished) -> Any:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=finished.home.use_mlflow())
    return client, client.get_run(finished.outcome["run"]["run_id"])


def test_reaches_95_percent(finished: Finished) -> None:
    assert finished.outcome["metrics"]["val/top1"] >= 95.0
    assert finished.outcome["metrics"]["val_ema/top1"] >= 95.0
    assert finished.outcome["attempts"] == 1


def test_every_step_and_epoch_is_in_mlflow_once(mlflow_run: Any) -> None:
    client, run = mlflow_run
    assert run.info.status == "FINISHED"
    for key in ("train/loss", "train/lr", "train/grad_norm"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert steps == list(range(1, 361)), key
    for key in ("val/top1", "val/top5", "val/loss", "val_ema/top1", "val_ema/top5", "val_ema/loss"):
        assert len(client.get_metric_history(run.info.run_id, key)) == 8, key
    assert "train/images_per_second" in run.data.metrics
    assert 0 <= run.data.metrics["train/data_wait_fraction"] <= 1
    assert run.data.params["optim.name"] == "rmsprop_tf"
    assert run.data.params["data.global_batch_size"] == "32"


def test_job_in_mlflow_runs_again(mlflow_run: Any, tmp_path: Path) -> None:
    from orchestration.job.load import load_job

    client, run = mlflow_run
    path = client.download_artifacts(run.info.run_id, "job.yaml", str(tmp_path))
    assert load_job(path) == load_job(JOB)


def test_checkpoint_is_whole_and_safe_to_load(finished: Finished, store: Store) -> None:
    state = load_checkpoint(store, finished.outcome["checkpoint_url"])
    assert state.step == 360
    assert len([name for name in state.model if name.startswith("AuxLogits")]) > 0
    assert state.data["fingerprint"]
    names = {
        e.url.split("/")[4] for e in store.list(f"s3://runs/{finished.outcome['run_name']}/step-")
    }
    assert len(names) == 3  # checkpoint.keep


def test_model_loads_without_rayception(mlflow_run: Any, finished: Finished) -> None:
    """The logged model answers images' bytes with names, in a process that has no checkout."""
    import subprocess
    import sys

    code = (
        "import io, sys; sys.path = [p for p in sys.path if not p.endswith('main')]\n"
        "import mlflow, pandas, PIL.Image\n"
        f"mlflow.set_tracking_uri('{finished.home.use_mlflow()}')\n"
        f"model = mlflow.pyfunc.load_model('{finished.outcome['model_uri']}')\n"
        "png = io.BytesIO(); PIL.Image.new('RGB', (8, 8)).save(png, format='PNG')\n"
        "said = model.predict(pandas.DataFrame({'image': [png.getvalue()]}))\n"
        "print(said['class'][0], len(said['classes'][0]))\n"
        "assert 'inception.network' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120 * BUSY, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in "0123456789"
    assert done.stdout.split()[1] == "5"


def test_what_people_look_at_is_there(mlflow_run: Any, finished: Finished, tmp_path: Path) -> None:
    client, run = mlflow_run
    for folder, names in {
        "pictures": {
            "learning-curves.png", "rate-and-norm.png", "time.png", "timeline.html",
            "training-samples.png",
        },
        "evaluation": {
            "confusion.png", "confusion.html", "classes.html", "mistakes.png", "per-class.csv",
            "pairs.csv", "calibration.csv", "confusion.csv", "predictions.csv",
        },
    }.items():  # fmt: skip
        found = client.list_artifacts(run.info.run_id, folder)
        assert {one.path.rpartition("/")[2] for one in found} == names
        assert all(one.file_size > 50 for one in found)
    tags, metrics = run.data.tags, run.data.metrics
    assert tags["rayception.attempts"] == "1"
    assert tags["rayception.checkpoint.last"].endswith("step-000000360")
    assert tags["rayception.digest"] == f"step 360: {finished.outcome['digest']}"
    assert tags["rayception.devices"].endswith("1 threads)")
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert 0 < metrics["run/goodput"] < 1
    assert metrics["run/rank_hours"] > 0
    phases = finished.outcome["phases"]
    assert set(phases) == set(PHASES)
    assert sum(phases.values()) == pytest.approx(finished.outcome["wall_s"], abs=10)
    for name in STARTUP:
        [point] = client.get_metric_history(run.info.run_id, f"startup/{name}_seconds")
        assert (point.step, point.value) == (1, pytest.approx(phases[name], abs=0.01)), name
    parts = [f"train/{part}_fraction" for part in ("data_wait", "compute", "all_reduce")]
    assert 0.3 < sum(metrics[part] for part in parts) <= 1.05
    assert any(key.startswith("system/") for key in metrics)
    assert {one.dataset.digest for one in run.inputs.dataset_inputs} == {
        tags["rayception.train_fingerprint"][:36],
        *(one.dataset.digest for one in run.inputs.dataset_inputs if "val" in one.dataset.name),
    }


@pytest.mark.exhaustive
def test_second_run_finds_the_data_and_walks_the_same_losses(
    finished: Finished, mlflow_run: Any, store: Store
) -> None:
    """Same job, other world size: one rank takes the two ranks' micro-batches, and the losses are
    the same bits."""
    home = finished.home
    process = home.start(
        "run", JOB, "cluster.accelerators=CPU:1", "schedule.epochs=8", "data.loader_workers=2"
    )
    url = wait_for_step(home, store, process, 45)
    process.send_signal(signal.SIGINT)  # what is compared is there
    assert process.wait(120 * BUSY) == 130
    assert "packed" not in (home.folder / "stdout").read_text()
    client, run = mlflow_run
    other = json.loads(store.read(f"{url}/run.json"))["run_id"]
    assert client.get_run(other).info.status == "KILLED"
    two = [p.value for p in client.get_metric_history(run.info.run_id, "train/loss")]
    one = [p.value for p in client.get_metric_history(other, "train/loss")]
    assert one == two[: len(one)]
    assert len(one) >= 45


@pytest.mark.exhaustive
def test_a_pretrained_start_begins_where_the_other_run_ended(
    finished: Finished, mlflow_run: Any, store: Store
) -> None:
    """Frozen up to the 35x35 blocks, on two ranks: those stay bitwise, the rest moves."""
    done = finished.home.call(
        "run", JOB, "--json", f"model.init_from={finished.outcome['checkpoint_url']}/state.pt",
        "schedule.epochs=0.2", "schedule.warmup_epochs=0", "optim.lr=0.001",
        "model.freeze_until=Mixed_5d", "loss.mixup=0.1", timeout_s=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    client, _ = mlflow_run
    losses = client.get_metric_history(outcome["run"]["run_id"], "train/loss")
    assert losses[0].value < 1.5  # from scratch it is about 3.2
    assert outcome["metrics"]["val/top1"] > 90
    source = load_checkpoint(store, finished.outcome["checkpoint_url"]).model
    for name, tensor in load_checkpoint(store, outcome["checkpoint_url"]).model.items():
        is_frozen = name.startswith(("Conv2d_", "Mixed_5"))
        assert bool((tensor == source[name]).all()) == is_frozen, name
    missing = finished.home.call("run", JOB, "model.init_from=s3://runs/none/state.pt")
    assert missing.returncode == 2
    assert "model.init_from: got s3://runs/none/state.pt, and no such file" in missing.stderr


@pytest.mark.exhaustive
def test_killed_worker_goes_on_from_its_checkpoint(
    finished: Finished, mlflow_run: Any, store: Store
) -> None:
    home = finished.home
    process = home.start("run", JOB, "schedule.epochs=4", "schedule.warmup_epochs=0.5")
    stdout = home.folder / "stdout"
    wait_for(
        lambda: "step-000000045" in _listing(store, stdout) or process.poll() is not None,
        240,
        lambda: stdout.read_text(),
    )
    assert process.poll() is None, (home.folder / "stderr").read_text()
    victim = home.processes("RayTrainWorker")[0]
    victim.send_signal(signal.SIGKILL)
    assert process.wait(300 * BUSY) == 0, (home.folder / "stderr").read_text()
    shown = stdout.read_text()
    assert "2 attempts" in shown
    top1 = re.search(r"top-1: ([0-9.]+) %", shown)
    assert top1 is not None
    assert float(top1[1]) > 80.0
    client, _ = mlflow_run
    run_id = re.search(r"MLflow run: (\w+)", shown)
    assert run_id is not None
    steps = [p.step for p in client.get_metric_history(run_id[1], "train/loss")]
    assert steps == list(range(1, 181))  # each step once, none missing


def _listing(store: Store, stdout: Path) -> str:
    """The checkpoints that the run in `stdout` has written so far."""
    name = re.search(r"run (quickstart-\S+) in", stdout.read_text())
    if name is None:
        return ""
    return " ".join(entry.url for entry in store.list(f"s3://runs/{name[1]}/step-"))


@pytest.mark.parametrize(
    ("overrides", "code", "words"),
    [
        (["data.source=null", "data.train=s3://data/empty/train"], 2, "s3://data/empty/train"),
        pytest.param(
            ["data.source=null", "data.train=s3://nobucket/train"],
            3,
            "nobucket",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            ["checkpoint.storage=s3://nobucket/runs"], 3, "nobucket", marks=pytest.mark.exhaustive
        ),
        pytest.param(["model.num_classes=5"], 2, "Write 10", marks=pytest.mark.exhaustive),
        pytest.param(["data.train_samples=1000"], 2, "counts 1437", marks=pytest.mark.exhaustive),
        (["tracking.uri=http://127.0.0.1:9"], 3, "tracking.uri: got http://127.0.0.1:9"),
        (["cluster.accelerators=H100:1"], 3, "H100"),
    ],
)
def test_bad_input_is_one_line(
    finished: Finished, overrides: list[str], code: int, words: str
) -> None:
    done = finished.home.call("run", JOB, *overrides, timeout_s=120)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.exhaustive
def test_wrong_credentials_are_said(finished: Finished) -> None:
    home = finished.home
    url = f"http://127.0.0.1:{home.state['ports']['s3']}"
    stranger = Home(home.folder / "stranger")
    stranger.folder.mkdir()
    stranger.environment |= {
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "hunter2hunter2",
    }
    try:
        done = stranger.call("run", JOB, f"storage.endpoint_url={url}", timeout_s=180)
    finally:
        stranger.call("stack", "down", "--force")
    assert done.returncode == 3, done.stderr
    assert "AWS_ACCESS_KEY_ID" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
