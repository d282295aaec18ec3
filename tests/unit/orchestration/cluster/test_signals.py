"""A process whose terminal is closed: it is told once, and what it prints then is kept."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_for

PROGRAM = """
import os, signal, sys, time
from orchestration.cluster.signals import handle_endings
seen = []
handle_endings(lambda number, _: seen.append(number))
print("ready", flush=True)
while os.isatty(1):
    time.sleep(0.01)
print("before the signal", flush=True)
while not seen:
    time.sleep(0.01)
time.sleep(0.5)
print("saved after", seen, flush=True)
print("resume it", file=sys.stderr, flush=True)
"""
INTERRUPTED = """
import time
from orchestration.cluster.signals import handle_endings
handle_endings()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("as Ctrl-C", flush=True)
"""


def start(program: str, home: Path, terminal: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, env={**os.environ, "RAYCEPTION_HOME": str(home)},
        preexec_fn=hear_hangups,
    )  # fmt: skip


def hear_hangups() -> None:
    """Also where these tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def read_until(terminal: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        seen += os.read(terminal, 1000)


@pytest.mark.parametrize("program", [PROGRAM, INTERRUPTED])
def test_a_closed_terminal_ends_a_run_as_ctrl_c_does(program: str, tmp_path: Path) -> None:
    """The terminal closes and the shell says so too: two signals, which count once."""
    ours, theirs = pty.openpty()
    process = start(program, tmp_path, theirs)
    os.close(theirs)
    read_until(ours, b"ready\r\n")
    os.close(ours)
    if program is PROGRAM:  # it prints before it is told
        wait_for(lambda: any(log.read_text() for log in tmp_path.glob("logs/*")), 60)
    for _ in range(2):
        process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    [log] = (tmp_path / "logs").glob("after-hangup-*.log")
    told = "before the signal\nsaved after [1]\nresume it\n"
    if program is PROGRAM:
        assert log.read_text() == told
    else:  # an exception in the middle of a write leaves it to be written again
        assert log.read_text().removeprefix("ready\n") == "as Ctrl-C\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_an_ignored_hang_up_stays_ignored(tmp_path: Path) -> None:
    """As under nohup; a termination still ends it."""
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["nohup", sys.executable, "-c", PROGRAM], stdout=file, stderr=file,
            start_new_session=True, env={**os.environ, "RAYCEPTION_HOME": str(tmp_path)},
        )  # fmt: skip
    wait_for(lambda: "ready" in output.read_text(), 60)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert output.read_text() == "ready\nbefore the signal\nsaved after [15]\nresume it\n"
