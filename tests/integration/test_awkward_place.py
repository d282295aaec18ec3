"""A run where everything around it is awkward at once, whose terminal is closed, and which resumes.

Each thing alone is a unit test or a row of tests/README.md; here none may disturb the other.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import RAYCEPTION, ROOT, Home
from tests.waiting import BUSY

# A machine of its own: no network but loopback and no IPv6, 64 MB of shared memory (a container's),
# a host name that no one resolves, 256 open files, files that only their owner reads, and a working
# directory where nobody writes.
PLACE = (
    "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && "
    "mount -t tmpfs -o size=64m tmpfs /dev/shm && hostname nowhere.invalid && ulimit -n 256 && "
    'umask 077 && cd /proc && exec "$@"'
)
JOB = (
    str(ROOT / "jobs" / "quickstart.yaml"), "schedule.epochs=2", "schedule.warmup_epochs=0",
    "data.loader_workers=1", "checkpoint.every_steps=10",
)  # fmt: skip


@pytest.fixture
def awkward(tmp_path: Path) -> Home:
    folder = tmp_path / ("h" * (140 - len(str(tmp_path))))
    temporary = tmp_path / ("t" * (129 - len(str(tmp_path))))
    for made in (folder, temporary):
        made.mkdir()
    config = tmp_path / "aws-config"
    config.write_text("[default\nbroken")
    home = Home(folder)
    for name in ("HOME", "LANG", "LC_ALL", "PYTHONUTF8"):
        home.environment.pop(name, None)
    home.environment |= {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "TMPDIR": str(temporary),
        "AWS_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(config),
        "RAY_ADDRESS": "192.0.2.1:6379",  # of another cluster
        "LC_ALL": "POSIX",
    }
    return home


def in_place(*arguments: str) -> list[str]:
    return ["unshare", "--mount", "--uts", "--net", "sh", "-c", PLACE, "sh", RAYCEPTION, *arguments]


def hear_hangups() -> None:
    """Also where these tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def read_until(terminal: int, pattern: bytes, limit_s: float) -> str:
    """What is shown until the pattern is."""
    seen, deadline = b"", time.monotonic() + BUSY * limit_s
    while not re.search(pattern, seen, re.DOTALL):
        left_s = deadline - time.monotonic()
        assert left_s > 0, seen.decode(errors="replace")
        if select.select([terminal], [], [], left_s)[0]:
            seen += os.read(terminal, 4096)
    return seen.decode(errors="replace")


@pytest.mark.exhaustive
@pytest.mark.skipif(os.geteuid() != 0, reason="a machine of its own needs root")
def test_a_run_in_an_awkward_place_whose_terminal_closes(awkward: Home) -> None:
    home = awkward
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        in_place("run", *JOB), env=home.environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=hear_hangups,
    )  # fmt: skip
    os.close(theirs)
    screen = read_until(ours, rb"in MLflow experiment.*epoch", 180)
    assert process.poll() is None, screen
    os.close(ours)
    for _ in range(2):  # the terminal's own signal, and the shell's
        os.killpg(process.pid, signal.SIGHUP)
    assert process.wait(120 * BUSY) == 130, screen
    home.wait_until_empty(60)
    [log] = (home.folder / "logs").glob("after-hangup-*.log")
    resume = re.search(r"`rayception resume (s3://runs/\S+)` goes on", log.read_text())
    assert resume is not None, log.read_text()
    again = subprocess.run(
        in_place("resume", resume[1], "--endpoint-url", "local", "--json"),
        env=home.environment | {"HOME": "/proc"},  # before, there was none; here nobody writes
        capture_output=True, text=True, timeout=300 * BUSY, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    outcome = json.loads(again.stdout)
    assert outcome["attempts"] == 2
    assert outcome["checkpoint_url"].endswith("step-000000090")
    assert "127.0.0.1:9" not in again.stderr
    home.wait_until_empty(60)
