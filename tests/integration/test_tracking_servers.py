"""A team's own MLflow: PostgreSQL behind it, artifacts in S3, and passwords. All of it real."""

import base64
import json
import re
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from datasets.storage.store import Store, StoreConfig
from orchestration.errors import ServiceError
from orchestration.stack.processes import end_processes, identify
from orchestration.stack.services import LOOPBACK, REGION, free_ports, is_ready
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import close_run, log_file, open_run
from orchestration.tracking.writer import MetricWriter
from tests.integration.conftest import ROOT, Home
from tests.integration.postgresql import Cluster, cluster
from tests.waiting import BUSY, wait_for

COMPOSE = ROOT / "infra" / "compose" / "tracking.yaml"
LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
POINTS = 100_000
WRONG = "hunter2-is-a-secret-too"
KEYS = ("train/loss", "train/lr", "train/grad_norm", "train/epoch")
TRAINER = "a-trainer"  # no admin: may do what it likes in its own experiments


@dataclass(frozen=True)
class Server:
    """uri: without a password. home: whose object store has the artifacts."""

    uri: str
    password: str = field(repr=False)  # of TRAINER
    admin_password: str = field(repr=False)
    home: Home
    log: Path
    database: Cluster


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = Home(tmp_path_factory.mktemp("home"))
    # The store alone: the run's Ray is to start with the password in its environment.
    code = (
        "from orchestration.stack.local import up\n"
        "from orchestration.stack.state import stack_folder\n"
        "up(stack_folder(), frozenset({'s3'}), num_cpus=1, log=print)"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=home.environment, cwd=ROOT, check=True, timeout=120 * BUSY
    )
    folder = tmp_path_factory.mktemp("server")
    with cluster("mlflow") as database:
        [port] = free_ports(1)
        made = Server(
            uri=f"http://{LOOPBACK}:{port}",
            password=secrets.token_hex(16),
            admin_password=secrets.token_hex(16),
            home=home,
            log=folder / "log",
            database=database,
        )
        process = start_mlflow(made, port, folder)
        try:
            create_user(made, TRAINER, made.password)
            yield made
        finally:
            end_processes([identify(process.pid)])
    assert home.call("stack", "down", "--force").returncode == 0
    home.wait_until_empty()


def start_mlflow(made: Server, port: int, folder: Path) -> "subprocess.Popen[bytes]":
    """The server of infra/compose/tracking.yaml: its command, environment, auth.ini and health
    check, with this machine's places for the containers'."""
    file = yaml.safe_load(COMPOSE.read_text())
    state, service = made.home.state, file["services"]["mlflow"]
    secrets_of = {
        "POSTGRES_PASSWORD": made.database.password,
        "S3_SECRET_KEY": state["secrets"]["secret_key"],
        "MLFLOW_ADMIN_PASSWORD": made.admin_password,
        "MLFLOW_SECRET_KEY": secrets.token_hex(16),
    }
    places = {  # of the containers: here
        "--host=0.0.0.0": f"--host={LOOPBACK}",
        "--port=5000": f"--port={port}",
        ":5000/": f":{port}/",
        "@postgres:5432/": f"@{LOOPBACK}:{made.database.port}/",
        "//seaweedfs:8333": f"//{LOOPBACK}:{state['ports']['s3']}",
        "/etc/mlflow/auth.ini": str(folder / "auth.ini"),
    }

    def here(text: str) -> str:
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: secrets_of[found[1]], text)
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    (folder / "auth.ini").write_text(here(file["configs"]["auth"]["content"]))
    environment = {name: here(value) for name, value in service["environment"].items()}
    environment["AWS_ACCESS_KEY_ID"] = state["secrets"]["access_key"]
    program, *options = [here(word) for word in service["command"]]
    with made.log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *options],
            env=made.home.environment | environment,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://{LOOPBACK}:{port}"
    wait_for(lambda: is_ready("mlflow", url) or process.poll() is not None, 180, made.log.read_text)
    assert process.poll() is None, made.log.read_text()
    check = [here(word) for word in service["healthcheck"]["test"]]
    assert check[:2] == ["CMD", "python"]
    subprocess.run([sys.executable, *check[2:]], check=True, timeout=30 * BUSY)
    return process


def create_user(made: Server, name: str, password: str) -> None:
    """The admin makes a user."""
    asked = urllib.request.Request(
        f"{made.uri}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {coded('admin', made.admin_password).decode()}",
        },
    )
    with urllib.request.urlopen(asked, timeout=30 * BUSY) as response:
        assert response.status == 200


def coded(name: str, password: str) -> bytes:
    """As a request carries them."""
    return base64.b64encode(f"{name}:{password}".encode())


def act_as(patch: pytest.MonkeyPatch, name: str | None, password: str = "") -> None:
    """This process has that user's password in its environment; None: nobody's."""
    for variable, value in ((USER_VARIABLE, name), (PASSWORD_VARIABLE, password)):
        if name is None:
            patch.delenv(variable, raising=False)
        else:
            patch.setenv(variable, str(value))


def terminal_of(server: Server, name: str, password: str) -> Home:
    """The same machine's command line, in whose environment that user's password stands."""
    made = Home(server.home.folder)
    made.environment |= {USER_VARIABLE: name, PASSWORD_VARIABLE: password}
    return made


def begin(server: Server, name: str) -> RunRef:
    return open_run(server.uri, experiment="team", name=name, params={"a.b": 1}, tags={"k": "v"})


def begin_writing(server: Server, name: str, folder: Path) -> tuple[RunRef, MetricWriter]:
    run = begin(server, name)
    return run, MetricWriter(run, Outbox(Store(), (folder / "run").as_uri()), "rank-0")


def test_what_is_written_with_a_password_comes_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, TRAINER, server.password)
    run, writer = begin_writing(server, "whole", tmp_path)
    for step in range(1, 11):
        writer.log(step, {"train/loss": 1.0 / step})
    assert writer.close() == 0
    log_file(run, "job.yaml", b"name: x")
    close_run(run, "FINISHED")
    client = MlflowClient(tracking_uri=server.uri)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a.b": "1"}
    rows = server.database.query("mlflow", "SELECT status FROM runs WHERE name = %s", "whole")
    assert rows == [("FINISHED",)]
    history = client.get_metric_history(run.run_id, "train/loss")
    assert [(p.step, p.value) for p in history] == [(s, 1.0 / s) for s in range(1, 11)]
    path = client.download_artifacts(run.run_id, "job.yaml", str(tmp_path))
    assert Path(path).read_text() == "name: x"


@pytest.mark.parametrize(
    ("user", "words"),
    [(None, "no user is named"), (TRAINER, "does not know the user")],
    ids=["none", "wrong"],
)
def test_without_the_password_it_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, user: str | None, words: str
) -> None:
    act_as(monkeypatch, TRAINER, server.password)
    run = begin(server, "refused")
    act_as(monkeypatch, user, WRONG)
    calls: list[Callable[[], object]] = [
        lambda: begin(server, "never"),
        lambda: log_file(run, "a.txt", b"text"),
        lambda: close_run(run, "FINISHED"),
    ]
    for call in calls:
        with pytest.raises(ServiceError) as caught:
            call()
        check_line(str(caught.value), words)
    terminal = server.home if user is None else terminal_of(server, user, WRONG)
    done = terminal.call("runs", "--tracking-uri", server.uri)
    assert done.returncode == 3
    check_line(done.stderr.strip(), words)
    assert done.stdout == ""


def check_line(line: str, words: str) -> None:
    """One line by the law, with both variables and no password."""
    assert LAW.match(line), line
    assert words in line
    assert USER_VARIABLE in line
    assert PASSWORD_VARIABLE in line
    assert WRONG not in line


def test_what_a_user_may_not_do_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, "admin", server.admin_password)
    open_run(server.uri, experiment="the-admins", name="a", params={}, tags={})
    act_as(monkeypatch, TRAINER, server.password)
    with pytest.raises(ServiceError) as caught:
        open_run(server.uri, experiment="the-admins", name="b", params={}, tags={})
    check_line(str(caught.value), "does not let this user do that (403")
    assert server.password not in str(caught.value)


def test_a_name_that_it_does_not_answer_to_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, TRAINER, server.password)
    other = server.uri.replace(LOOPBACK, "127.1")  # the same address
    with pytest.raises(ServiceError) as caught:
        open_run(other, experiment="team", name="a", params={}, tags={})
    assert LAW.match(str(caught.value)), str(caught.value)
    assert "--allowed-hosts" in str(caught.value)


@pytest.mark.exhaustive
def test_a_hundred_thousand_points_arrive_once_each(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, TRAINER, server.password)
    run, writer = begin_writing(server, "many", tmp_path)
    steps = POINTS // len(KEYS)
    began = time.monotonic()
    for step in range(1, steps + 1):
        writer.log(step, dict.fromkeys(KEYS, step * 0.5))
    queued_s = time.monotonic() - began
    wait_for(lambda: not writer.unsent(), 200)
    took_s = time.monotonic() - began
    assert writer.close() == 0
    client = MlflowClient(tracking_uri=server.uri)
    expected = [(step, step * 0.5) for step in range(1, steps + 1)]
    for key in KEYS:
        history = client.get_metric_history(run.run_id, key)
        assert [(point.step, point.value) for point in history] == expected, key
    read_s = time.monotonic() - began - took_s
    print(  # noqa: T201 - a measurement
        f"{POINTS:,} points: queued in {queued_s:.1f} s, on the server after {took_s:.1f} s "
        f"({POINTS / took_s:,.0f} a second), read again in {read_s:.1f} s"
    )


@pytest.mark.exhaustive
def test_a_run_with_the_password_in_its_environment_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains, and what it leaves behind holds the password nowhere."""
    terminal = terminal_of(server, TRAINER, server.password)
    began = time.monotonic()
    done = terminal.call(
        *("run", "jobs/quickstart.yaml", "--json", f"tracking.uri={server.uri}"),
        *("schedule.epochs=1", "schedule.warmup_epochs=0"),
        *("cluster.dollars_per_hour={CPU: 3.6}", "tracking.register=digits"),
        timeout_s=500,
    )
    assert done.returncode == 0, done.stderr
    print(f"one epoch: {time.monotonic() - began:.0f} s")  # noqa: T201 - a measurement
    outcome = json.loads(done.stdout)
    run_id, name = outcome["run"]["run_id"], outcome["run_name"]
    act_as(monkeypatch, TRAINER, server.password)
    client = MlflowClient(tracking_uri=server.uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert steps == list(range(1, 46))
    hours = run.data.metrics["run/rank_hours"]
    assert 2 * 5 / 3600 < hours < 2 * 500 / 3600  # two ranks, for seconds
    assert run.data.metrics["run/dollars"] == pytest.approx(3.6 * hours)
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.tags["rayception.model"] == outcome["model_uri"]

    listed = terminal.call("runs", "--tracking-uri", server.uri, "--status", "finished", "--json")
    assert listed.returncode == 0, listed.stderr
    row = next(row for row in json.loads(listed.stdout) if row["run_id"] == run_id)
    assert (row["name"], row["step"]) == (name, 45)
    assert row["epoch"] == pytest.approx(1.0, abs=0.01)
    assert row["top1"] == outcome["metrics"]["val_ema/top1"]
    page = terminal.call("ui", f"s3://runs/{name}", "--tracking-uri", server.uri, "--no-open")
    assert page.stdout.strip() == f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/" + (
        f"{run_id}/model-metrics?workflowType=machine_learning"
    )

    folder = tmp_path / "artifacts"
    folder.mkdir()
    client.download_artifacts(run_id, "", str(folder))
    assert (folder / "job.yaml").exists()
    state = server.home.state
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", state["secrets"]["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", state["secrets"]["secret_key"])
    url = f"http://{LOOPBACK}:{state['ports']['s3']}"
    store = Store(StoreConfig(endpoint_url=url, region=REGION, addressing="path"))
    stored = {
        one.url: store.read(one.url)
        for place in (f"s3://runs/{name}/", "s3://mlflow/")  # the model's files too
        for one in store.list(place)
    }
    life = json.loads(stored[f"s3://runs/{name}/timeline.json"])["attempts"]
    held_s = sum(one["ranks"] * (one["ended"] - one["began"]) for one in life)
    assert 3600 * hours == pytest.approx(held_s, abs=5)  # to the end, the last evaluation included
    ray_logs = Path(state["ray_temp"])
    left = {
        "what it printed": (done.stdout + done.stderr).encode(),
        "params and tags": json.dumps(run.to_dictionary()).encode(),
        "experiment": json.dumps(dict(client.get_experiment(run.info.experiment_id).tags)).encode(),
        "the server's log": server.log.read_bytes(),
        **stored,
        **files_below(folder),
        **files_below(ray_logs),
        **files_below(server.home.folder),
    }
    has_name = {where for where, content in left.items() if run_id.encode() in content}
    assert f"s3://runs/{name}/run.json" in has_name  # the search would have found it
    assert any(str(ray_logs) in where for where in left)
    assert any(where.endswith("MLmodel") for where in stored)
    secret = server.password.encode()
    sent = coded(TRAINER, server.password)
    found = {where for where, content in left.items() if secret in content or sent in content}
    assert not found


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
