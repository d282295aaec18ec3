"""Public reports about MLflow, tried on its real server, which runs in this process behind a path,
as behind a reverse proxy, and refuses requests when it is told to."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest

from datasets.storage.store import Store
from orchestration.errors import JobError, ServiceError
from orchestration.job.load import flatten, load_job, to_dict
from orchestration.tracking import runs
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.writer import MetricWriter
from tests.waiting import wait_for

JOB = Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml"
PREFIX = "/team/mlflow"
Start = Callable[[str, list[tuple[str, str]]], object]


@dataclass
class Server:
    uri: str = ""
    refused: int = 0  # requests to come that are answered with 429
    headers: list[tuple[str, str]] = field(default_factory=list)  # of those answers
    asked: int = 0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from werkzeug.exceptions import NotFound
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.serving import WSGIRequestHandler, make_server

    folder = tmp_path_factory.mktemp("mlflow")
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")  # the server sets it; it is restored at the end
        patch.delenv("MLFLOW_TRACKING_URI")
        database = f"sqlite:///{folder}/mlflow.db"
        with runs.connect(database) as client:
            client.search_experiments()  # creates the tables, which takes longer than a request may
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", database)
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", (folder / "artifacts").as_uri())
        from mlflow.server import app

        def gate(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
            server.asked += 1
            if server.refused:
                server.refused -= 1
                start("429 Too Many Requests", server.headers)
                return [b'{"error_code": "RESOURCE_EXHAUSTED", "message": "slow down"}']
            answer: Iterable[bytes] = app(environ, start)
            return answer

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_: object, **__: object) -> None:
                pass

        application = DispatcherMiddleware(NotFound(), {PREFIX: gate})
        http = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        server.uri = f"http://127.0.0.1:{http.server_port}{PREFIX}"
        yield server
        http.shutdown()
        thread.join(10)
        http.server_close()
        mlflow.set_tracking_uri(None)


@pytest.fixture
def server(process: Server) -> Server:
    process.refused, process.headers, process.asked = 0, [], 0
    return process


def opened(server: Server, **params: Any) -> RunRef:
    return runs.open_run(server.uri, experiment="reports", name="a run", params=params, tags={})


def stored(run: RunRef) -> Any:
    with runs.connect(run.uri) as client:
        return client.get_run(run.run_id).data


def test_a_server_behind_a_path(server: Server) -> None:
    """mlflow/mlflow#2823, #4484, #22159: everything but the server's root was a 404."""
    run = opened(server, lr=0.1)
    runs.log_metrics(run, {"train/loss": 1.5}, step=3)
    runs.log_file(run, "plots/a.txt", b"content")
    runs.set_tags(run, {"a": "b"})
    assert runs.metric_histories(run, ["train/loss"]) == {"train/loss": [(3, 1.5)]}
    runs.close_run(run, runs.FINISHED)
    assert runs.run_status(run) == runs.FINISHED


def test_long_and_many_params(server: Server) -> None:
    """mlflow/mlflow#1976, #6183, microsoft/qlib#1317: a long value ended the run at its start. The
    first 6,000 characters are kept here; the artifact job.yaml has them all."""
    params = {f"p{number}": number for number in range(250)} | {"long": "x" * 6001, "nothing": ""}
    data = stored(runs.open_run(server.uri, experiment="reports", name="a", params=params, tags={}))
    assert len(data.params) == 252
    assert data.params["long"] == "x" * 6000


def test_every_name_of_a_job_is_a_name_for_mlflow(server: Server) -> None:
    """mlflow/mlflow#12940, #1164: names with other characters are refused, with all of a batch."""
    overrides = [
        "cluster.environment.variables={NCCL_DEBUG: INFO, _a1: x}",
        "cluster.dollars_per_hour={H100: 2.99, A100-80G: 2}",
    ]
    params = flatten(to_dict(load_job(JOB, overrides)))
    data = stored(runs.open_run(server.uri, experiment="r", name="a", params=params, tags={}))
    assert set(data.params) == set(params)
    for name in ("A(B)", "a b", "1a", "a@b", "ä", ""):
        with pytest.raises(JobError, match="a variable's name has letters"):
            load_job(JOB, [f"cluster.environment.variables={{'{name}': x}}"])
    with pytest.raises(JobError, match=r"tracking\.experiment: got 501 characters"):
        load_job(JOB, [f"tracking.experiment={'x' * 501}"])


@pytest.mark.parametrize("name", ["grün 🌸 'x' \"y\" 100%", "x" * 500, "a/b:c?d=e&f#g"])
def test_odd_names_of_experiments(server: Server, name: str) -> None:
    """mlflow/mlflow#9425 is one of many requests for more characters in names."""
    first, second = (
        runs.open_run(server.uri, experiment=name, name=name, params={}, tags={}) for _ in range(2)
    )
    assert first.experiment_id == second.experiment_id
    with runs.connect(server.uri) as client:
        assert client.get_experiment(first.experiment_id).name == name


def test_odd_names_of_metrics_block_nothing(server: Server, tmp_path: Path) -> None:
    """verl-project/verl#119, #984, mlflow/mlflow#7807: one refused name and no metric of the batch
    was logged. Nodes have such names: a scoped IPv6 address."""
    run = opened(server)
    writer = MetricWriter(run, Outbox(Store(), tmp_path.as_uri()), "rank-0")
    writer.log(1, {"system/fe80::1%eth0/cpu": 5.0, "mean@1": 2.0, "timing(s)/a,b": 3.0, "ok": 4.0})
    assert writer.close() == 0
    runs.log_metrics(run, {"AR@100": 7.0}, step=1)
    assert stored(run).metrics == {
        "system/fe80__1_eth0/cpu": 5.0, "mean_1": 2.0, "timing_s_/a_b": 3.0, "ok": 4.0,
        "AR_100": 7.0,
    }  # fmt: skip


def test_metrics_that_are_no_numbers(server: Server, tmp_path: Path) -> None:
    """mlflow/mlflow#1573, #22826: infinity is stored as 1.8e308, which ruins a chart; here it is
    NaN like every other value that is no number."""
    run = opened(server)
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf, "fine": 1.0}
    writer = MetricWriter(run, Outbox(Store(), tmp_path.as_uri()), "rank-0")
    writer.log(1, values)
    assert writer.close() == 0
    runs.log_metrics(run, {f"eval/{key}": value for key, value in values.items()}, step=1)
    metrics = stored(run).metrics
    for key in values:
        for name in (key, f"eval/{key}"):
            assert math.isnan(metrics[name]) == (key != "fine"), name


def test_tags_that_are_too_long(server: Server) -> None:
    """mlflow/mlflow#2931, #13575: PostgreSQL refuses more than 8,000 characters, older servers more
    than 5,000; SQLite takes any number, so what arrives is counted."""
    tags = {"long": "x" * 9000, **{f"t{number}": "1" for number in range(150)}}
    run = runs.open_run(server.uri, experiment="reports", name="a", params={}, tags=tags)
    assert len(stored(run).tags["long"]) == runs.MAX_TAG_CHARS
    runs.set_tags(run, {"other": "ü" * 9000, "short": ""})
    assert len(stored(run).tags["other"]) == runs.MAX_TAG_CHARS
    assert "t149" in stored(run).tags


def test_a_server_that_is_asked_too_often(server: Server, tmp_path: Path) -> None:
    """mlflow/mlflow#11462, dagster-io/dagster#22633: 429 in mid-run. The points wait, and arrive
    once; an answer that asks for an hour's pause holds up nobody."""
    run = opened(server)
    outbox = Outbox(Store(), tmp_path.as_uri())
    writer = MetricWriter(run, outbox, "rank-0")
    server.headers, server.refused = [("Retry-After", "3600")], 5
    for step in range(1, 4):
        writer.log(step, {"train/loss": 1.0 / step})
    wait_for(lambda: not writer.unsent(), 60, lambda: f"{server.refused} refusals to come")
    assert writer.close() == 0
    history = runs.metric_histories(run, ["train/loss"])["train/loss"]
    assert history == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert outbox.points() == {}
    server.refused, began = 1000, time.monotonic()
    with pytest.raises(ServiceError, match=r"asked too often \(429\)") as caught:
        opened(server)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    server.refused = 0
