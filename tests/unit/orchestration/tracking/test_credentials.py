"""Who gets the embedded MLflow's token from our clients: that server alone, while it runs."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import ServiceError
from orchestration.stack.processes import identify
from orchestration.tracking.credentials import find_embedded, set_credentials
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import run_status
from tests.unit.datasets.answers import Answers, answering

TOKEN = "a1" * 32
TEAM = "hunter2-of-the-team"


class Server:
    """Refuses every request, and keeps the logins."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.port = int(answers.url.rpartition(":")[2])

    @property
    def logins(self) -> list[str]:
        headers = (asked.headers.get("Authorization", "") for asked in self._answers.asked)
        return [base64.b64decode(text.removeprefix("Basic ")).decode() for text in headers]


@pytest.fixture
def server() -> Iterator[Server]:
    with answering(lambda _: (401, {}, b"")) as answers:
        yield Server(answers)


@pytest.fixture
def home(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person with the login of a team's server in files, and a stack that runs."""
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        f"[mlflow]\nmlflow_tracking_username = someone\nmlflow_tracking_password = {TEAM}\n"
    )
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"default login someone password {TEAM}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAYCEPTION_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logins = ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4")
    for name in ("NETRC", *(f"MLFLOW_TRACKING_{part}" for part in logins)):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    write_stack(tmp_path, server.port, os.getpid())
    return tmp_path


def write_stack(home: Path, port: int, pid: int) -> None:
    values: dict[str, Any] = {
        "id": "a", "kept": True, "ports": {"mlflow": port}, "reaper": None, "ray_temp": None,
        "ray_uses_own_s3": True, "processes": {"mlflow": [pid, identify(os.getpid())[1]]},
        "secrets": {"access_key": "", "secret_key": "", "ray_token": "", "mlflow_token": TOKEN},
    }  # fmt: skip
    (home / "stack.json").write_text(json.dumps(values))


def ask(uri: str) -> None:
    with pytest.raises(ServiceError, match="401"):
        run_status(RunRef(uri=uri, experiment_id="0", run_id="abc"))


def test_it_gets_the_token_whatever_else_is_configured(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    for host in ("127.0.0.1", "localhost"):
        ask(f"http://{host}:{server.port}")
        ask(f"http://{host}:{server.port}/")
    assert server.logins == [f"rayception:{TOKEN}"] * 4


def test_no_other_server_gets_it(home: Path, server: Server) -> None:
    """Another port; and the same one once the server has ended, which another user's may hold."""
    write_stack(home, server.port + 1, os.getpid())
    ask(f"http://127.0.0.1:{server.port}")
    write_stack(home, server.port, os.getpid())
    ask(f"http://127.0.0.1:{server.port}")
    write_stack(home, server.port, 2**22 + 1)
    ask(f"http://127.0.0.1:{server.port}")
    assert server.logins[1] == f"rayception:{TOKEN}"
    assert TOKEN not in server.logins[0] + server.logins[2]


def test_a_stack_that_cannot_be_read_does_not_matter_to_a_teams_server(home: Path) -> None:
    (home / "stack.json").write_text("{")
    assert find_embedded("http://mlflow.example:5000") is None
    set_credentials("http://mlflow.example:5000")
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ
