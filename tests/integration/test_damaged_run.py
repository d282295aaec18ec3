"""Damaged samples in a real run: skipped up to the job's limit, said in one line above it."""

import json
import re
import subprocess
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.storage.store import Store
from orchestration.stack.processes import marked_processes
from orchestration.stack.worker_pool import POOL_FILE
from tests.integration.conftest import Home
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits on disk, three training images broken."""
    folder = tmp_path_factory.mktemp("damaged")
    for split in ("train", "val"):
        rows, classes = digits(split)
        samples = list(rows)
        if split == "train":
            for number in (3, 500, 1400):
                samples[number] = {**samples[number], "png": b"no image"}
        url = (folder / split).as_uri()
        pack(samples, Store(), url, classes=classes, samples_per_shard=128)
    return folder


def arguments(damaged: Path, max_damaged: int) -> list[str]:
    return [
        "run",
        "jobs/quickstart.yaml",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "data.source=null",
        f"data.train={(damaged / 'train').as_uri()}",
        f"data.val={(damaged / 'val').as_uri()}",
        f"data.max_damaged={max_damaged}",
    ]


def check_skipped(home: Home, done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, done.stderr
    run_id = done.stdout.split("MLflow run: ")[1].split()[0]
    uri = home.use_mlflow()
    metrics = MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics
    assert metrics["train/damaged_samples"] == 3
    assert metrics["train/damaged_image_samples"] == 3
    assert "train/damaged_label_samples" not in metrics


@pytest.mark.exhaustive
def test_run_skips_up_to_its_limit_in_the_rank(other_home: Home, damaged: Path) -> None:
    check_skipped(other_home, other_home.call(*arguments(damaged, 10), "data.loader_workers=0"))


@pytest.fixture(scope="module")
def pool(other_home: Home, damaged: Path) -> list[int]:
    """A run in loader processes has ended; -> the processes that then wait for the next one's
    ranks."""
    done = other_home.call(*arguments(damaged, 10), "data.loader_workers=2")
    check_skipped(other_home, done)
    marker = json.loads((other_home.folder / POOL_FILE).read_text())["marker"]
    wait_for(lambda: len(marked_processes(marker)) == 2, 60, lambda: "no processes of the pool")
    return [process.pid for process in marked_processes(marker)]


def test_run_skips_up_to_its_limit(pool: list[int]) -> None:
    assert len(pool) == 2


def test_a_loss_that_is_no_number_ends_at_once_and_names_its_samples(
    other_home: Home, damaged: Path, pool: list[int], tmp_path: Path
) -> None:
    """No restart would help; both ranks write the names of what they had in the step. Its ranks are
    the processes that the run before it left waiting on the kept stack."""
    done = other_home.call(
        *arguments(damaged, 10), "optim.lr=1e30", "optim.clip_norm=null",
        "optim.weight_decay=0", f"checkpoint.storage={tmp_path.as_uri()}",
        "tracking.log_every_steps=5",
    )  # fmt: skip
    assert done.returncode == 4, done.stdout
    assert re.search(r"train/loss: got (nan|inf) in step \d+;", done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    files = sorted(tmp_path.glob("*/not-finite/step-*/rank-*.json"))
    assert [file.name for file in files] == ["rank-0.json", "rank-1.json"]
    names = [name for file in files for name in json.loads(file.read_text())["samples"]]
    assert len(set(names)) == 32  # the whole batch, each sample once
    assert all(re.fullmatch(r"digit-\d{4}", name) for name in names)
    logs = Path(other_home.state["ray_temp"]) / "session_latest" / "logs"
    for pid in pool:
        [log] = logs.glob(f"worker-*-{pid}.err")
        assert "begins after step 0" in log.read_text()
    wait_for(lambda: not any(map(psutil.pid_exists, pool)), 30, lambda: "ranks are left")


@pytest.mark.exhaustive
@pytest.mark.parametrize("limit", [0, 2])
def test_run_stops_above_its_limit(other_home: Home, damaged: Path, limit: int) -> None:
    done = other_home.call(*arguments(damaged, limit))
    assert done.returncode == 4
    words = "data.max_damaged: got 3 damaged" if limit else "no whole image"
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr
