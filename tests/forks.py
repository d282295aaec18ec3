"""Processes of tests that are forked from one that has imported torch: to import it takes a process
longer than most of what these do.

What they run lies in a module that can be imported by its name, `tests.unit. ...`.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.waiting import BUSY

ROOT = Path(__file__).resolve().parents[1]
# None of these starts a thread, so that a fork of the server is safe. torch imports the second by
# itself where an optimizer is made, which would be in every rank anew.
IMPORTED = (
    "torch.distributed",
    "torch._dynamo",
    "tests.unit.inception.ranks",
    "tests.unit.datasets.victim",
    "orchestration.cli",
    "orchestration.job.plan",
    "datasets.packing.audit",
    "datasets.packing.files",
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(IMPORTED))


def start(work: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process of its own that calls `work`: it can be killed as any other."""
    process = _CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def run_ranks(work: Callable[..., None], world_size: int, *arguments: Any, limit_s: float) -> None:
    """Calls `work(rank, *arguments)` on every rank; one that fails, or is not done in time, fails
    the test."""
    ranks = [start(work, rank, *arguments) for rank in range(world_size)]
    end = time.monotonic() + BUSY * limit_s
    try:
        while running := [rank for rank in ranks if rank.exitcode is None]:
            if any(rank.exitcode for rank in ranks):
                break  # the others would wait for it
            if time.monotonic() > end:
                pytest.fail(f"{world_size} ranks were not done after {BUSY * limit_s} s")
            wait([rank.sentinel for rank in running], timeout=1.0)
        assert [rank.exitcode for rank in ranks] == [0] * world_size
    finally:
        for rank in ranks:
            rank.kill()
            rank.join(10)


def rayception(*arguments: str) -> "CompletedProcess[str]":
    """What the command says, without the seconds of its imports. That these are whole is tested by
    the tests that start it as a process of its own."""
    return _run(_command, arguments)


def script(path: Path, *arguments: str) -> "CompletedProcess[str]":
    """What a Python file says when it is run."""
    return _run(_script, (str(path), *arguments))


def _run(work: Callable[..., None], arguments: tuple[str, ...]) -> "CompletedProcess[str]":
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(_redirected, work, arguments, dict(os.environ), str(out), str(err))
        process.join(120 * BUSY)
        code = process.exitcode
        process.kill()
        process.join(10)
        assert code is not None, f"{arguments}: not done after {120 * BUSY} s"
        return CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _redirected(
    work: Callable[..., None], arguments: tuple[str, ...], environment: dict[str, str],
    out: str, err: str,
) -> None:  # fmt: skip
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    work(*arguments)


def _command(*arguments: str) -> None:
    from orchestration.cli import main

    sys.argv = ["rayception", *arguments]
    main()


def _script(path: str, *arguments: str) -> None:
    import torch

    torch.set_num_threads(1)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
