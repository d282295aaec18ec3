"""The worker pool of a kept stack: taken once, and only by ranks with the same code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.stack.processes import MARKER
from orchestration.stack.state import Stack, new_stack
from orchestration.stack.worker_pool import POOL_FILE, code_digest, new_pool, save_pool, take_pool

ENVIRONMENT = {"RAYCEPTION_RANK": "cpu"}
Waiting = tuple["subprocess.Popen[bytes]", dict[str, Any]]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return replace(new_stack(tmp_path), ray_temp="one")


@pytest.fixture
def waiting(stack: Stack) -> Iterator[Waiting]:
    """A process of a new pool of the stack, and that pool."""
    pool = new_pool(stack, ENVIRONMENT)
    code = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {MARKER: pool["marker"]},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process, pool
    process.kill()
    process.wait()


def test_a_pool_is_taken_once_by_ranks_with_its_environment(stack: Stack, waiting: Waiting) -> None:
    process, pool = waiting
    assert pool["marker"].startswith(f"{stack.id}:ray")  # ends with its stack
    assert take_pool(stack, ENVIRONMENT) == (0, {})
    save_pool(stack, pool, 2)
    assert take_pool(stack, ENVIRONMENT) == (2, {MARKER: pool["marker"]})
    assert take_pool(stack, ENVIRONMENT) == (0, {})
    assert process.poll() is None
    assert not list(stack.folder.glob(f"{POOL_FILE}*"))


@pytest.mark.parametrize("what", ["environment", "code"])
def test_a_pool_that_does_not_match_ends(stack: Stack, waiting: Waiting, what: str) -> None:
    process, pool = waiting
    save_pool(stack, pool | {"code": "other"} if what == "code" else pool, 2)
    wanted = ENVIRONMENT if what == "code" else {"RAYCEPTION_RANK": "gpu"}
    assert take_pool(stack, wanted) == (0, {})
    assert not psutil.pid_exists(process.pid)


def test_a_pool_ends_where_another_takes_its_place(stack: Stack, waiting: Waiting) -> None:
    process, pool = waiting
    save_pool(stack, pool, 2)
    other = new_pool(stack, ENVIRONMENT)
    save_pool(stack, other, 1)
    assert not psutil.pid_exists(process.pid)
    assert take_pool(stack, ENVIRONMENT) == (1, {MARKER: other["marker"]})


def test_a_pool_ends_with_its_ray(stack: Stack) -> None:
    save_pool(stack, new_pool(stack, ENVIRONMENT), 2)
    assert take_pool(replace(stack, ray_temp="other"), ENVIRONMENT) == (0, {})


def test_a_changed_module_is_other_code(tmp_path: Path) -> None:
    module = tmp_path / "inception" / "network.py"
    module.parent.mkdir()
    module.write_text("a = 1")
    os.utime(module, ns=(1, 1))
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    module.write_text("a = 2")
    assert code_digest(tmp_path) != before
    (module.parent / "more.py").touch()
    assert code_digest(tmp_path) not in (before, "")
