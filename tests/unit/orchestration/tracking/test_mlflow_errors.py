"""What a failed call to MLflow says. The answers come from a server of this test, through MLflow's
own client; those that a real MLflow can be made to give: tests/integration/test_runs_verbs.py."""

import json
import re
from collections.abc import Iterator

import pytest

from orchestration.errors import ServiceError
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import run_status
from tests.unit.datasets.answers import answering

LAW = re.compile(r"^tracking\.uri: got \S+; the MLflow server.+\. .+\.$")
PASSWORD = "hunter2-of-mlflow"
LOGIN_PAGE = "<!DOCTYPE html>\n<html><body>Log in</body></html>"


class Server:
    def __init__(self) -> None:
        self.uri = ""
        self.status = 200
        self.body = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(lambda _: (made.status, {}, made.body.encode())) as listening:
        made.uri = listening.url
        yield made


def message_of(uri: str) -> str:
    with pytest.raises(ServiceError) as caught:
        run_status(RunRef(uri=uri, experiment_id="0", run_id="abc"))
    text = str(caught.value)
    assert LAW.match(text), text
    assert PASSWORD not in text
    return text


def api_error(code: str, message: str) -> str:
    return json.dumps({"error_code": code, "message": message})


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (401, "You are not authenticated", "Set MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "Ask for the permission"),
        (403, "Invalid Host header - possible DNS rebinding attack", "--allowed-hosts"),
        (200, LOGIN_PAGE, "login page, or another server's"),
        (404, "not found", "Update it to MLflow 3.1 or later"),
        (405, "no", "Update it to MLflow 3.1 or later"),
        (413, "<html>413 Request Entity Too Large</html>", "client_max_body_size"),
        (429, "slow down", "Try again later"),
        (503, LOGIN_PAGE, "Try again later"),
        (507, "no", "no space left"),
        (500, api_error("INTERNAL_ERROR", "(sqlite3.OperationalError) database or disk is full"),
         "Look at its log, its database and its disk's free space"),
        (404, api_error("RESOURCE_DOES_NOT_EXIST", "Run with id=abc not found"),
         "has no run abc"),
        (400, api_error("INVALID_PARAMETER_VALUE",
                        "The run abc must be in the 'active' state. Current state is deleted."),
         "mlflow runs restore --run-id abc"),
        (400, api_error("INVALID_PARAMETER_VALUE", "no reason"), "refused or did not answer"),
    ],
)  # fmt: skip
def test_each_refusal_has_its_remedy(server: Server, status: int, body: str, remedy: str) -> None:
    server.status, server.body = status, body
    assert remedy in message_of(server.uri)


def test_a_wrong_password_is_not_said_as_a_missing_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    server.status, server.body = 401, "no"
    assert "the password is wrong" in message_of(server.uri)


def test_a_server_that_is_away_and_a_proxy_that_is(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Check that it runs" in message_of("http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", f"http://someone:{PASSWORD}@127.0.0.1:9")
    text = message_of("http://mlflow.invalid:5000")
    assert "through the proxy http://127.0.0.1:9" in text
    assert "NO_PROXY" in text
