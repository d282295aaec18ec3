"""The embedded stack: real services, nothing left behind, nothing lost."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from datasets.storage.store import Store, StoreConfig
from orchestration.stack.processes import find_process
from orchestration.stack.state import load_stack
from tests.integration import strangers
from tests.integration.conftest import RAYCEPTION, Home
from tests.waiting import BUSY, wait_for


def test_up_a_killed_store_and_down(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is killed has every object that it acknowledged when it is up again."""
    up = home.call("stack", "up")
    assert up.returncode == 0, up.stderr
    status = json.loads(home.call("stack", "status", "--json").stdout)
    assert status["kept"] is True
    assert {part: state["is_up"] for part, state in status["services"].items()} == {
        "s3": True,
        "mlflow": True,
        "ray": True,
    }
    assert all(s["url"].startswith("http://127.0.0.1:") for s in status["services"].values())
    assert stat.S_IMODE((home.folder / "stack.json").stat().st_mode) == 0o600
    for name in ("s3", "mlflow", "logs"):
        assert stat.S_IMODE((home.folder / name).stat().st_mode) == 0o700
    arguments = [word for process in home.processes() for word in process.cmdline()]
    assert not [
        word for word in arguments if any(s in word for s in home.state["secrets"].values())
    ]
    check_env(home)
    before = home.state["processes"]
    assert home.call("stack", "up").returncode == 0  # again: nothing is started twice
    assert home.state["processes"] == before
    # The access key is a name (the store's log has it); the other two are secrets.
    for secret in (
        home.state["secrets"][name] for name in ("secret_key", "ray_token", "mlflow_token")
    ):
        assert secret not in up.stdout + up.stderr
        for log in (home.folder / "logs").glob("*.log"):
            assert secret not in log.read_text(errors="replace"), log.name

    def connect() -> Store:
        stack = load_stack(home.folder)
        assert stack is not None
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", stack.secrets.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", stack.secrets.secret_key)
        return Store(
            StoreConfig(endpoint_url=stack.url("s3"), region="us-east-1", addressing="path")
        )

    store = connect()
    written = {}
    for number in range(60):
        url, content = f"s3://data/kill/{number}", os.urandom(1000 + 5000 * number)
        store.write(url, content)
        written[url] = content
    server = home.state["processes"]["s3"]
    os.kill(server[0], signal.SIGKILL)
    wait_for(lambda: find_process(server) is None, 10)
    status = json.loads(home.call("stack", "status", "--json").stdout)
    assert status["services"]["s3"]["is_up"] is False
    assert home.call("stack", "up").returncode == 0  # starts what is missing
    store = connect()
    for url, content in written.items():
        assert store.read(url) == content, url

    down = home.call("stack", "down")
    assert down.returncode == 0
    home.wait_until_empty(5)
    assert "was not running" in home.call("stack", "down").stdout


def check_env(home: Home) -> None:
    """What `stack env` prints lets a shell's own programs in, at the store and at MLflow."""
    code = (
        "import boto3, mlflow, os; boto3.client('s3').list_objects_v2(Bucket='data'); "
        "print(len(mlflow.MlflowClient().search_experiments()))"
    )
    script = f'eval "$({RAYCEPTION} stack env)" && "{sys.executable}" -c "{code}"'
    done = subprocess.run(
        ["sh", "-c", script], env=home.environment, capture_output=True, text=True,
        timeout=60 * BUSY, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_services_that_hold_data_listen_on_loopback_only(shared_home: Home) -> None:
    for part in ("s3", "mlflow"):
        main = psutil.Process(shared_home.state["processes"][part][0])
        for process in [main, *main.children(recursive=True)]:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip == "127.0.0.1", f"{part}: {connection.laddr}"


def test_port_in_use_is_said(home: Home) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = home.call("stack", "up", "--mlflow-port", str(port))
    assert done.returncode == 3
    assert done.stderr.strip() == (
        f"--mlflow-port: got {port}; another process listens there. "
        "Name another port, or leave it out for a free one."
    )
    home.wait_until_empty(5)


def test_unwritable_folder_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = Home(blocked / "home").call("stack", "up")
    assert done.returncode == 3
    assert "got Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        done = Home(disk).call("run", "jobs/quickstart.yaml")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 3
    assert "64 MiB free" in done.stderr or "MiB free on its disk" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive),
        signal.SIGKILL,
    ],
)
def test_interrupted_run_leaves_no_process(home: Home, how: signal.Signals) -> None:
    """Ctrl-C, a termination and a crash of the command, each while everything runs."""
    process = home.start("run", "jobs/quickstart.yaml", "schedule.epochs=200")
    stdout = home.folder / "stdout"
    wait_for(
        lambda: "in MLflow experiment" in stdout.read_text() or process.poll() is not None, 120
    )
    assert process.poll() is None, (home.folder / "stderr").read_text()
    wait_for(lambda: home.processes("RayTrainWorker"), 90)
    if how is signal.SIGKILL and os.geteuid() == 0:
        dashboard = f"127.0.0.1:{home.state['ports']['dashboard']}"
        assert [
            [address, request] for address, request, _ in strangers.answered(home.processes())
        ] == [[dashboard, "http GET /"]]  # its page, which asks for the token
    os.killpg(process.pid, how)
    code = process.wait(120 * BUSY)
    home.wait_until_empty(60)
    if how is signal.SIGINT:
        assert code == 130
        assert "Traceback" not in (home.folder / "stderr").read_text()
