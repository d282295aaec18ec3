"""One run on a real cluster of several machines lives through everything that happens to them.

The machines' faults are injected one after the other into one run, which costs a minute a fault;
at the end its losses, step by step, and all that its checkpoint holds are to the last bit those of
a run on one rank that nothing happened to. Seconds from a fault to the next step are printed and
kept in .pytest_cache/v/rayception, and stand in README as measured; what is asserted is a wide
bound.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.cluster.conftest import RayCluster, submission_of
from tests.integration.cluster.machines import Machine
from tests.waiting import wait_for

JOB = "jobs/quickstart.yaml"
SIZE = [
    "cluster.accelerators=CPU:1", "cluster.num_nodes=2", "checkpoint.every_steps=20",
    "cluster.max_failures=6", "schedule.epochs=60", "checkpoint.keep=200", "model.width=0.2",
    "tracking.log_every_steps=2", "data.micro_batch_size=8",
]  # fmt: skip
LIMIT_S = 90  # of a recovery


class Run:
    """A run as its submissions' logs tell it, and the seconds that each fault cost."""

    def __init__(self, cluster: RayCluster, *arguments: str) -> None:
        self.cluster = cluster
        sent = cluster.call("submit", JOB, *cluster.places, *SIZE, *arguments)
        self.submission = submission_of(sent.stdout)
        self.cost_s: dict[str, float] = {}

    @property
    def log(self) -> str:
        return self.cluster.log(self.submission)

    def status(self) -> str:
        return str(self.cluster.job(self.submission).get("status", ""))

    def step(self) -> int:
        """The newest step that the log tells; 0 before the first."""
        steps = re.findall(r"^step (\d+)/", self.log, re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def attempt(self) -> int:
        found = re.findall(r", attempt (\d+)$", self.log, re.MULTILINE)
        return int(found[-1]) if found else 1

    @property
    def url(self) -> str:
        found = re.search(r"run (quickstart-[\w-]+) in MLflow", self.log)
        assert found is not None, self.log
        return f"s3://runs/{found[1]}"

    def wait_for_step(self, step: int, limit_s: float = LIMIT_S) -> None:
        wait_for(
            lambda: self.step() >= step or self.status() == "FAILED", limit_s, lambda: self.log
        )
        assert self.status() != "FAILED", self.log

    def hit(self, name: str, fault: Callable[[], object]) -> None:
        """Injects a fault while the run is training, and waits for the first step after it."""
        self.wait_for_step(self.step() + 6)
        attempt, began = self.attempt(), time.monotonic()
        fault()
        wait_for(
            lambda: self.attempt() > attempt or self.status() == "FAILED",
            LIMIT_S,
            lambda: f"{name}: {self.log}",
        )
        assert self.status() != "FAILED", self.log
        self.cost_s[name] = time.monotonic() - began


def rank_processes(machine: Machine) -> list[int]:
    """Pids of the ranks that work there."""
    found = []
    for pid in machine.pids():
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                if "RayTrainWorker" in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found


def working(cluster: RayCluster) -> Machine:
    """A node that a rank works on."""
    return next(node for node in cluster.nodes.values() if rank_processes(node))


def revive(cluster: RayCluster) -> None:
    """Every node that was lost joins again, as a new one."""
    alive = {row["node_ip"] for row in cluster.alive()}
    for name, node in cluster.nodes.items():
        if node.address not in alive:
            node.set_link("up")
            node.kill()
            cluster.start_node(name)
    cluster.wait_for_nodes(4)


@pytest.fixture(scope="module")
def run(cluster: RayCluster, request: pytest.FixtureRequest) -> Iterator[Run]:
    made = Run(cluster)
    made.wait_for_step(1, 120)
    yield made
    if made.status() == "RUNNING":
        stop(made, cluster)
    costs = ", ".join(f"{name} {cost:.1f} s" for name, cost in made.cost_s.items())
    request.config.get_terminal_writer().line(f"\nuntil the next step: {costs}")
    cache = request.config.cache  # beside other processes of pytest nobody reads that line
    if cache is not None:
        cache.set("rayception/recovery_s", made.cost_s)


def test_a_killed_worker(run: Run, cluster: RayCluster) -> None:
    run.hit("killed worker", lambda: os.kill(rank_processes(working(cluster))[0], signal.SIGKILL))
    assert "restart 1 of 6" in run.log
    steps = [step for step, _ in losses(cluster, run)]
    assert steps == list(range(1, len(steps) + 1))  # some computed again, each told once
    assert len(steps) > 6


@pytest.mark.exhaustive
def test_a_killed_node(run: Run, cluster: RayCluster) -> None:
    run.hit("killed node", lambda: working(cluster).kill())
    revive(cluster)


@pytest.mark.exhaustive
def test_a_drained_node_costs_no_step(run: Run, cluster: RayCluster) -> None:
    """The ranks save and leave before its end, and begin at the very next step elsewhere."""
    run.wait_for_step(run.step() + 4)
    node = working(cluster)
    run.hit("drained node", lambda: cluster.call("drain", node.address, "--notice", "20"))
    log = run.log
    assert "will be taken away" in log
    assert not rank_processes(node)
    left = int(re.findall(r"saved and left after step (\d+)", log)[-1])
    rank = cluster.call("logs", run.submission, "--rank", "0").stdout
    assert int(re.findall(r"begins after step (\d+)", rank)[-1]) == left
    revive(cluster)


@pytest.mark.exhaustive
def test_a_cut_link(run: Run, cluster: RayCluster) -> None:
    run.hit("cut link", lambda: working(cluster).set_link("down"))
    revive(cluster)


@pytest.mark.exhaustive
def test_storage_away_for_half_a_minute(run: Run, cluster: RayCluster) -> None:
    def pause() -> None:
        cluster.weed.kill()
        cluster.weed.wait(10)
        time.sleep(30)
        cluster.start_s3()

    run.hit("storage killed for 30 s", pause)


@pytest.mark.exhaustive
def test_mlflow_away_costs_nothing(run: Run, cluster: RayCluster) -> None:
    """No attempt more; every point is there at the end (below)."""
    run.wait_for_step(run.step() + 4)
    attempt = run.attempt()
    cluster.mlflow.kill()
    cluster.mlflow.wait(10)
    run.wait_for_step(run.step() + 20)
    cluster.start_mlflow()
    run.wait_for_step(run.step() + 10)
    assert run.attempt() == attempt


@pytest.mark.exhaustive
def test_a_stop_saves_and_a_resume_goes_on(run: Run, cluster: RayCluster) -> None:
    """The driver is told to stop, then killed; each time another submission takes the run up, on
    one rank, and on three."""
    run.wait_for_step(run.step() + 4)
    url = run.url
    stop(run, cluster)
    resume(run, cluster, url, "cluster.num_nodes=1")
    wait_for_checkpoint(run, cluster)
    drivers = [pid for pid in cluster.head.pids() if is_driver(read_command(pid))]
    began = time.monotonic()
    for driver in drivers:
        os.kill(driver, signal.SIGKILL)
    wait_for(lambda: run.status() == "FAILED", 60, lambda: run.log)
    resume(run, cluster, url, "cluster.num_nodes=3")
    wait_for_checkpoint(run, cluster)
    run.cost_s["killed driver, resumed by hand"] = time.monotonic() - began


@pytest.mark.exhaustive
def test_a_restarted_head(run: Run, cluster: RayCluster) -> None:
    """All of Ray is gone; what is left is the store and MLflow."""
    url = run.url
    began = time.monotonic()
    cluster.head.kill()
    for node in cluster.nodes.values():
        node.kill()
    cluster.start_head()
    cluster.wait_for_head()
    for name in cluster.nodes:
        cluster.start_node(name)
    cluster.wait_for_nodes(4)
    up_s = time.monotonic() - began
    resume(run, cluster, url)
    run.cost_s["head restarted (of it until Ray is up)"] = up_s
    run.cost_s["head restarted"] = time.monotonic() - began


@pytest.mark.exhaustive  # in the short tier on one machine (quickstart/test_outage.py)
def test_it_is_as_if_nothing_had_happened(run: Run, cluster: RayCluster) -> None:
    """Every step's loss once in MLflow, to the bit that of a run on one rank without faults; so all
    that is in a checkpoint.

    Both are stopped, not trained to their end: how many steps the faults leave room for depends on
    the machine."""
    faults = len(run.cost_s)
    run.wait_for_step(max(run.step() + 10, 50))
    stop(run, cluster)
    hit = losses(cluster, run)
    last = max(checkpoint_steps(cluster, run.url, every=20))
    calm = Run(cluster, "cluster.num_nodes=1")
    calm.wait_for_step(len(hit) + 1, 400)
    stop(calm, cluster)
    undisturbed = losses(cluster, calm)
    assert [step for step, _ in hit] == list(range(1, len(hit) + 1))
    assert len(hit) >= last >= (100 if faults > 3 else 40)
    assert hit == undisturbed[: len(hit)]
    assert digest(cluster, run, last) == digest(cluster, calm, last)


def stop(run: Run, cluster: RayCluster) -> None:
    assert cluster.call("stop", run.submission).stdout.endswith("STOPPED\n")
    assert "stopped after a checkpoint" in run.log


def resume(run: Run, cluster: RayCluster, url: str, *overrides: str) -> None:
    """Another submission takes the run up; until its first step."""
    places = ("--endpoint-url", cluster.s3_url, "--address", cluster.dashboard_url)
    sent = cluster.call("resume", url, *overrides, *places)
    run.submission = submission_of(sent.stdout)
    run.wait_for_step(1)


def wait_for_checkpoint(run: Run, cluster: RayCluster) -> None:
    """Until what these ranks computed is in a whole checkpoint, from which a later attempt goes
    on."""
    first = len(checkpoint_steps(cluster, run.url, every=20))
    wait_for(
        lambda: len(checkpoint_steps(cluster, run.url, every=20)) > first, LIMIT_S, lambda: run.log
    )


def is_driver(command: bytes) -> bool:
    return b"-m\x00orchestration.cli\x00resume" in command


def read_command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def losses(cluster: RayCluster, run: Run) -> list[tuple[int, float]]:
    code = (
        "import json; from mlflow.tracking import MlflowClient; "
        f"run_id = json.loads(store.read('{run.url}/run.json'))['run_id']; "
        f"history = MlflowClient(tracking_uri='{cluster.mlflow_url}')"
        ".get_metric_history(run_id, 'train/loss'); "
        "print(json.dumps([(p.step, p.value) for p in history]))"
    )
    return [tuple(pair) for pair in cluster.json(cluster.laptop, open_store(cluster) + code)]


def checkpoint_steps(cluster: RayCluster, url: str, *, every: int) -> list[int]:
    """Of the whole ones whose step is a multiple of `every`."""
    code = (
        "import json, re; "
        f"urls = [one.url for one in store.list('{url}/step-')]; "
        "print(json.dumps([int(found[1]) for one in urls "
        "if (found := re.search(r'step-(\\d+)/checkpoint.json', one))]))"
    )
    steps: list[int] = cluster.json(cluster.laptop, open_store(cluster) + code)
    return [step for step in steps if step % every == 0]


def digest(cluster: RayCluster, run: Run, step: int) -> str:
    """Of weights, statistics, optimizer and average in the checkpoint of that step."""
    code = (
        f"import json; index = store.read('{run.url}/step-{step:09d}/checkpoint.json'); "
        "print(json.dumps(json.loads(index)['digest']))"
    )
    found = cluster.json(cluster.laptop, open_store(cluster) + code)
    assert isinstance(found, str)
    return found


def open_store(cluster: RayCluster) -> str:
    """Code that makes `store`."""
    return (
        "from datasets.storage.store import Store, StoreConfig; "
        f"store = Store(StoreConfig(endpoint_url='{cluster.s3_url}', region='us-east-1', "
        "addressing='path')); "
    )
