"""One checkout's rayception as a person calls it, and one stack for the tests that share it.

They run one after the other, on one of pytest's processes; those that have services of their own,
those of a cluster of several machines first of all, on the other, before the unit tests.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import BUSY, wait_for

ROOT = Path(__file__).resolve().parents[2]
RAYCEPTION = str(Path(sys.executable).parent / "rayception")

# A background job of a shell ignores Ctrl-C, and so would what these tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Home:
    """A RAYCEPTION_HOME of a test: its commands, and the processes that belong to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "RAY"))
        }
        self.environment = clean | {"RAYCEPTION_HOME": str(folder)}

    def call(self, *arguments: str, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        """Runs `rayception ARGUMENTS` to its end."""
        return subprocess.run(
            [RAYCEPTION, *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=BUSY * timeout_s,
        )

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts `rayception ARGUMENTS` in a process group of its own, as a shell does."""
        return subprocess.Popen(
            [RAYCEPTION, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=(self.folder / "stdout").open("w"),
            stderr=(self.folder / "stderr").open("w"),
            text=True,
            start_new_session=True,
        )

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "stack.json").read_text())
        return state

    def use_mlflow(self) -> str:
        """URL of its MLflow; this process logs in there from now on."""
        os.environ["MLFLOW_TRACKING_USERNAME"] = "anyone"
        os.environ["MLFLOW_TRACKING_PASSWORD"] = self.state["secrets"]["mlflow_token"]
        return f"http://127.0.0.1:{self.state['ports']['mlflow']}"

    def processes(self, named: str = "") -> list[psutil.Process]:
        """Every process that belongs to this home (services, their children, the reaper), or those
        that have `named` in their name."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAYCEPTION_HOME") != str(self.folder):
                    continue
                if named in process.name():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, part: str) -> None:
        """Kills a service of the stack and its children with -9; it stays away."""
        server = psutil.Process(self.state["processes"][part][0])
        for process in [server, *server.children(recursive=True)]:
            process.kill()

    def wait_until_empty(self, limit_s: float = 40) -> None:
        wait_for(lambda: not self.processes(), limit_s, lambda: f"left: {self.processes()}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home of its own; whatever still runs at the end is killed."""
    made = Home(tmp_path)
    yield made
    for process in made.processes():
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            shares = "shared_home" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("one stack" if shares else "apart"))


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a stack that stays up; who kills a service starts it again."""
    with kept_stack(tmp_path_factory.mktemp("home")) as home:
        yield home


@pytest.fixture(scope="session")
def other_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One more of the kind, for tests of the other process: they need none of the finished runs."""
    with kept_stack(tmp_path_factory.mktemp("home")) as home:
        yield home


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One that a module has for itself."""
    with kept_stack(tmp_path_factory.mktemp("home")) as home:
        yield home


@contextlib.contextmanager
def kept_stack(folder: Path) -> Iterator[Home]:
    made = Home(folder)
    up = made.call("stack", "up")
    assert up.returncode == 0, up.stderr
    yield made
    down = made.call("stack", "down", "--force")
    assert down.returncode == 0, down.stderr
    made.wait_until_empty()
