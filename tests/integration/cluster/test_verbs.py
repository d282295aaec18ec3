"""What a person at a laptop is told by a real cluster of several machines, and what it does."""

import json
import re
import time

import pytest

from tests.integration.cluster.conftest import RayCluster, submission_of
from tests.integration.cluster.test_survives import Run, revive, working
from tests.waiting import BUSY, wait_for

JOB = "jobs/quickstart.yaml"
ONE = ["cluster.accelerators=CPU:1", "schedule.epochs=0.25", "schedule.warmup_epochs=0"]


@pytest.fixture(autouse=True)
def whole(cluster: RayCluster) -> None:
    revive(cluster)


def wait_for_end(cluster: RayCluster, submission: str, limit_s: float = 240) -> str:
    """-> its log."""

    def ended() -> bool:
        return cluster.job(submission).get("status") in ("SUCCEEDED", "FAILED", "STOPPED")

    wait_for(ended, limit_s, lambda: cluster.log(submission))
    return cluster.call("logs", submission).stdout


def test_a_missing_gpu_type_is_answered_and_does_not_hang(cluster: RayCluster) -> None:
    began = time.monotonic()
    done = cluster.call(
        "submit", JOB, *cluster.places, "cluster.accelerators=[A100:1,H200:1]", "--follow", code=3
    )
    assert "got A100:1 or H200:1 on 1 nodes" in done.stdout
    assert "3 GPUs (H100)" in done.stdout
    print(f"missing GPU type: {time.monotonic() - began:.1f} s")  # noqa: T201 - with -s
    assert time.monotonic() - began < 20 * BUSY


def test_preflight_asks_every_node_and_says_all_at_once(cluster: RayCluster) -> None:
    well = cluster.call(
        "preflight", JOB, *cluster.places, "cluster.accelerators=H100:1", "cluster.num_nodes=2",
        "cluster.secrets=[AWS_ACCESS_KEY_ID]", "--json",
    )  # fmt: skip
    said = json.loads(well.stdout)
    assert {one["name"] for one in said["checks"]} >= {"room", "data", "tracking", "versions"}
    assert not [one for one in said["checks"] if one["exit_code"]]
    assert not said["notes"]  # the head has the health checks that README names
    wrong = cluster.call(
        "preflight", JOB, *cluster.places, "cluster.accelerators=A100:1", "data.source=null",
        "data.val=s3://nowhere/val", "cluster.secrets=[NOT_THERE]", "checkpoint.storage=s3://no",
        f"tracking.uri={cluster.mlflow_url.replace('5000', '5999')}", code=3,
    )  # fmt: skip
    for words in (
        "NO room: cluster.accelerators: got A100:1",
        "NO tracking: tracking.uri: got no answer",
        "NO secrets: cluster.secrets: got no NOT_THERE",
        "NO storage: ",
        "ok packages",
        "ok versions",
    ):
        assert words in " ".join(wrong.stdout.split()), words


def test_mistakes_about_nodes_and_ranks_are_one_line(cluster: RayCluster) -> None:
    done = cluster.call("drain", "10.77.0.99", code=2)
    assert done.stderr.startswith("NODE: got '10.77.0.99'")
    assert cluster.head.address in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.exhaustive
def test_a_full_cluster_is_waited_for_with_a_reason_or_not_at_all(cluster: RayCluster) -> None:
    first = Run(cluster, "cluster.num_nodes=3", "data.micro_batch_size=8")
    first.wait_for_step(1, 120)
    text = cluster.call("logs", first.submission, "--rank", "1").stdout
    assert "rank 1 of 3 on" in text
    refused = cluster.call("logs", first.submission, "--rank", "3", code=2)
    assert refused.stderr.startswith("--rank: got 3")
    at_once = cluster.call("submit", JOB, *cluster.places, *ONE, "--no-wait", "--follow", code=3)
    assert "got no room within 0 s: 1 ranks of CPU wanted, room for 0 now" in at_once.stdout
    patient = submission_of(cluster.call("submit", JOB, *cluster.places, *ONE).stdout)
    wait_for(
        lambda: "waiting for room: 1 ranks of CPU" in cluster.log(patient),
        60,
        lambda: cluster.log(patient),
    )
    cluster.call("stop", first.submission)
    assert "top-1: " in wait_for_end(cluster, patient)


@pytest.mark.exhaustive
def test_an_elastic_run_goes_on_smaller_and_grows_again(cluster: RayCluster) -> None:
    run = Run(cluster, "cluster.num_nodes={min: 1, max: 3}", "data.micro_batch_size=8")
    run.wait_for_step(1, 120)
    assert ", 3 ranks, " in run.log
    run.hit("killed node, elastic", lambda: working(cluster).kill())
    assert "going on with 2 ranks of 3" in run.log
    revive(cluster)
    wait_for(lambda: run.attempt() == 3 or run.status() == "FAILED", 150, lambda: run.log)
    log = run.log
    assert "room for 1 more ranks; growing" in log
    before, after = log.split("growing")[0], log.split("growing")[1]
    last = int(re.findall(r"^step (\d+)/", before, re.MULTILINE)[-1])
    first = next(
        int(step) for step, rest in re.findall(r"^step (\d+)/(.*)", after, re.MULTILINE)
        if "attempt 3" in rest
    )  # fmt: skip
    assert 0 < first - last < 60
    assert ", 3 ranks, " in after
    cluster.call("stop", run.submission)


@pytest.mark.exhaustive
def test_a_sweep_runs_some_at_once_under_one_run(cluster: RayCluster) -> None:
    arguments = ("--grid", "optim.lr=0.02,0.045,0.09", "--limit", "2")
    sent = cluster.call("sweep", JOB, *cluster.places, *ONE, *arguments)
    assert "3 runs, 2 at once" in sent.stdout
    log = wait_for_end(cluster, submission_of(sent.stdout), 300)
    logs = [cluster.log(one) for one in re.findall(r"is submission (\S+)", log)]
    assert len(re.findall(r"seed=0 succeeded", log)) == 3, "\n".join([log, *logs])
    first_end = log.index("succeeded")
    assert log.index("2 of 3") < first_end < log.index("3 of 3")
    assert log.count("quickstart optim.lr=") >= 6  # told as it went, and in the table
    again = cluster.call("sweep", JOB, *cluster.places, *ONE, *arguments)
    assert wait_for_end(cluster, submission_of(again.stdout)).count("has run already") == 3


def test_no_secret_is_anywhere_that_can_be_asked(cluster: RayCluster) -> None:
    """The cluster's jobs and their logs, the run's own record, MLflow's parameters and tags."""
    asked = cluster.get(f"{cluster.dashboard_url}/api/jobs/")
    assert "rayception.name" in asked
    for one in json.loads(asked):
        asked += cluster.call("logs", one["submission_id"], code=None).stdout
    asked += cluster.get(f"{cluster.dashboard_url}/api/train/v2/runs/v1")
    asked += cluster.python(
        cluster.laptop,
        "from mlflow.tracking import MlflowClient; "
        f"c = MlflowClient(tracking_uri='{cluster.mlflow_url}'); "
        "print([r.to_dictionary() for e in c.search_experiments() "
        "for r in c.search_runs([e.experiment_id])]); "
        "from datasets.storage.store import Store, StoreConfig; "
        f"s = Store(StoreConfig(endpoint_url='{cluster.s3_url}', region='us-east-1', "
        "addressing='path')); "
        "print([s.read(e.url) for e in s.list('s3://runs/') if e.url.endswith('.json')])",
    )
    assert "global_batch_size" in asked
    for name, value in cluster.secrets.items():
        assert value not in asked, name
