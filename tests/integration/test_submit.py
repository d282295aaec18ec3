"""A job submitted over Ray's Jobs API to a cluster that others started, and watched from there."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, Home
from tests.waiting import BUSY, wait_for

JOB = "jobs/quickstart.yaml"
SHORT = ["schedule.epochs=0.4", "schedule.warmup_epochs=0"]
EPOCH = ["schedule.epochs=1", "schedule.warmup_epochs=0"]  # 45 steps: it trains when `stop` arrives


@pytest.fixture(scope="module")
def cluster(shared_home: Home) -> Home:
    """The stack as a cluster with its own services; the laptop has its URLs and its tokens."""
    return shared_home


@pytest.fixture
def laptop(cluster: Home, tmp_path: Path) -> Home:
    """Another home: no stack of its own, no credentials of the store."""
    made = Home(tmp_path)
    made.environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": cluster.state["secrets"]["ray_token"],
        "RAY_API_SERVER_ADDRESS": url(cluster, "dashboard"),
        "MLFLOW_TRACKING_USERNAME": "anyone",
        "MLFLOW_TRACKING_PASSWORD": cluster.state["secrets"]["mlflow_token"],
    }
    return made


def url(home: Home, part: str) -> str:
    return f"http://127.0.0.1:{home.state['ports'][part]}"


def places(cluster: Home) -> list[str]:
    return [
        f"cluster.address={url(cluster, 'dashboard')}",
        f"storage.endpoint_url={url(cluster, 's3')}",
        "storage.region=us-east-1",
        "storage.addressing=path",
        f"tracking.uri={url(cluster, 'mlflow')}",
    ]


def called(laptop: Home, *arguments: str, code: int = 0) -> Any:
    done = laptop.call(*arguments, timeout_s=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def steps_of(cluster: Home, run_id: str) -> list[int]:
    history = mlflow(cluster).get_metric_history(run_id, "train/loss")
    return [point.step for point in history]


def mlflow(cluster: Home) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=cluster.use_mlflow())


def submit_and_stop(cluster: Home, laptop: Home) -> Any:
    """A job is stopped as soon as its run has begun; -> the run, as MLflow has it."""
    sent = called(laptop, "submit", JOB, *places(cluster), *EPOCH, "--json")
    submission = json.loads(sent.stdout)["submission"]
    # Followed, as a look that is a command of its own may take longer than the run.
    follower, log = laptop.start("logs", "--follow", submission), laptop.folder / "stdout"
    wait_for(lambda: "run quickstart-" in log.read_text(), 120, log.read_text)
    began = time.monotonic()
    assert json.loads(called(laptop, "stop", submission, "--json").stdout)["status"] == "STOPPED"
    assert time.monotonic() - began < 30 * BUSY
    assert follower.wait(30 * BUSY) != 0  # stopped is no success
    assert json.loads(called(laptop, "status", submission, "--json").stdout)["status"] == "STOPPED"
    client = mlflow(cluster)
    experiment = client.get_experiment_by_name("quickstart")
    newest = client.search_runs([experiment.experiment_id], max_results=1)[0]
    assert newest.info.status == "KILLED"  # the driver was interrupted, and said so
    page = f"{url(cluster, 'dashboard')}/#/jobs/{submission}"  # as the laptop reaches it
    assert f"[{submission}]({page})" in newest.data.tags["mlflow.note.content"]
    return newest


def test_a_submission_is_stopped_resumed_followed_and_found_in_mlflow(
    cluster: Home, laptop: Home
) -> None:
    stopped = submit_and_stop(cluster, laptop)
    run_url = stopped.data.tags["rayception.storage"]
    to_cluster = ["--address", url(cluster, "dashboard"), "--endpoint-url", url(cluster, "s3")]
    sent = called(laptop, "resume", run_url, *to_cluster, "--json")
    submission = json.loads(sent.stdout)["submission"]
    done = called(laptop, "logs", submission, "--follow")
    assert "top-1: " in done.stdout
    run_id = re.search(r"MLflow run: (\w+)", done.stdout)
    assert run_id is not None
    assert run_id[1] == stopped.info.run_id
    run = mlflow(cluster).get_run(run_id[1])
    assert run.info.status == "FINISHED"
    assert steps_of(cluster, run_id[1]) == list(range(1, 46))
    page = f"{url(cluster, 'dashboard')}/#/jobs/{submission}"
    assert run.data.tags["rayception.submission_page"] == page
    found = json.loads(called(laptop, "status", submission, "--json").stdout)
    assert found["status"] == "SUCCEEDED"
    listed = json.loads(called(laptop, "list", "--json").stdout)
    assert submission in [one["id"] for one in listed]
    assert "Warning" not in done.stdout
    # What the cluster can be asked for holds no credential.
    everything = json.dumps(listed) + done.stdout
    for secret in cluster.state["secrets"].values():
        assert secret not in everything


@pytest.mark.exhaustive
def test_submitted_and_followed(cluster: Home, laptop: Home) -> None:
    done = called(laptop, "submit", JOB, *places(cluster), *SHORT, "--follow")
    submission = re.search(r"submitted (quickstart-\w{8}) to", done.stdout)
    assert submission is not None
    assert "top-1: " in done.stdout
    assert "top-1: " in called(laptop, "logs", submission[1]).stdout


@pytest.mark.exhaustive
def test_a_submission_is_stopped_and_goes_on_while_mlflow_is_away(
    cluster: Home, laptop: Home
) -> None:
    newest = submit_and_stop(cluster, laptop)
    cluster.kill("mlflow")
    run_url = newest.data.tags["rayception.storage"]
    to_cluster = ["--address", url(cluster, "dashboard"), "--endpoint-url", url(cluster, "s3")]
    sent = called(laptop, "resume", run_url, *to_cluster, "--json")
    again = json.loads(sent.stdout)["submission"]

    def status() -> str:
        said: str = json.loads(called(laptop, "status", again, "--json").stdout)["status"]
        return said

    wait_for(lambda: status() in ("SUCCEEDED", "FAILED"), 240, "the run's end")
    log = called(laptop, "logs", again).stdout
    assert status() == "SUCCEEDED", log
    assert f"`rayception sync {run_url}`" in " ".join(log.split())
    port = str(cluster.state["ports"]["mlflow"])
    called(cluster, "stack", "up", "--mlflow-port", port)
    called(cluster, "sync", run_url, "--endpoint-url", "local")
    assert mlflow(cluster).get_run(newest.info.run_id).info.status == "FINISHED"
    assert steps_of(cluster, newest.info.run_id) == list(range(1, 46))


@pytest.mark.parametrize("of_job", [{}, {"env_vars": {"A": "\u00e9 1"}}], ids=["run", "submission"])
def test_an_actor_gets_the_process_that_was_asked_for_ahead(
    cluster: Home, of_job: dict[str, Any]
) -> None:
    """With and without a runtime environment of the job, as `submit` gives one: Ray compares texts,
    and writes them in two ways."""
    code = f"""
import contextlib, os, psutil, ray
from pathlib import Path
from orchestration.cluster import prestart
from orchestration.job.load import load_job
from orchestration.cluster.worker_imports import KIND_VARIABLE
from tests.integration.conftest import Home
from tests.waiting import wait_for
home = Home(Path(os.environ["RAYCEPTION_HOME"]))
ray.init(address="127.0.0.1:{cluster.state["ports"]["ray"]}", runtime_env={of_job!r})
job = load_job("{JOB}", ["cluster.accelerators=CPU:1"])
def waiting():
    "In the environment of ranks."
    found = set()
    for process in home.processes("ray::IDLE"):
        with contextlib.suppress(psutil.Error):
            if KIND_VARIABLE in process.environ():
                found.add(process.pid)
    return found
before = waiting()
prestart.prestart_workers(job)
wait_for(lambda: waiting() - before, 60, "a process")
asked_for = waiting() - before
class Actor:
    def pid(self):
        return os.getpid()
environment = {{"env_vars": prestart.set_environment(job)}}
actor = ray.remote(num_cpus=1, runtime_env=environment)(Actor).remote()
pid = ray.get(actor.pid.remote(), timeout=60)
assert pid in asked_for, (pid, before, asked_for)
"""
    token = cluster.state["secrets"]["ray_token"]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180 * BUSY,
        env=cluster.environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["submit", JOB], 2, "cluster.address: got local; a job is submitted to the URL"),
        (["submit", JOB, "cluster.address=http://127.0.0.1:9"], 2, "loopback"),
        (["run", JOB, "PLACES"], 2, "`rayception submit` it"),
        (["status", "nothing"], 2, "SUBMISSION: got 'nothing'"),
        (["logs", "nothing"], 2, "SUBMISSION: got 'nothing'"),
        (["stop", "nothing"], 2, "SUBMISSION: got 'nothing'"),
        (["list", "--address", "http://127.0.0.1:9"], 3, "its Jobs API did not answer"),
        (["list", "--address", "head"], 2, "--address: got head"),
    ],
)
def test_mistakes_are_one_line(
    cluster: Home, laptop: Home, arguments: list[str], code: int, words: str
) -> None:
    given = [a for one in arguments for a in (places(cluster) if one == "PLACES" else [one])]
    done = called(laptop, *given, code=code)
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_wrong_token_is_said_and_not_repeated(cluster: Home, laptop: Home) -> None:
    laptop.environment["RAY_AUTH_TOKEN"] = "hunter2hunter2hunter2"
    done = called(laptop, "list", code=3)
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
