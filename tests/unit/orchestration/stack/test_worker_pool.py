"""A kept stack's processes for the next ranks: taken once, and never those of other code."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestration.stack.processes import MARKER
from orchestration.stack.state import Stack, new_stack
from orchestration.stack.worker_pool import FILE, code_now, new_pool, save_pool, take_pool

ENVIRONMENT = {"RAYCEPTION_RANK": "cpu"}


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return replace(new_stack(tmp_path), ray_temp="one")


@pytest.fixture
def waiting(stack: Stack) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, str]]]:
    """A process of a new pool of the stack, and what tells it."""
    added = new_pool(stack)
    code = "import time; print(flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | added, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process, added
    process.kill()
    process.wait()


def test_a_pool_is_taken_once_by_whose_ranks_are_like_it(
    stack: Stack, waiting: tuple["subprocess.Popen[bytes]", dict[str, str]]
) -> None:
    process, added = waiting
    assert added[MARKER].startswith(f"{stack.id}:ray")  # ends with its stack
    assert take_pool(stack, ENVIRONMENT) == (0, {})
    save_pool(stack, ENVIRONMENT, added, code_now(), 2)
    assert take_pool(stack, ENVIRONMENT) == (2, added)
    assert take_pool(stack, ENVIRONMENT) == (0, {})
    assert process.poll() is None
    assert not list(stack.folder.glob(f"{FILE}*"))


@pytest.mark.parametrize("what", ["environment", "code"])
def test_a_pool_that_does_not_fit_ends(
    stack: Stack, waiting: tuple["subprocess.Popen[bytes]", dict[str, str]], what: str
) -> None:
    process, added = waiting
    code = "of yesterday" if what == "code" else code_now()
    save_pool(stack, ENVIRONMENT, added, code, 2)
    wanted = ENVIRONMENT if what == "code" else {"RAYCEPTION_RANK": "gpu"}
    assert take_pool(stack, wanted) == (0, {})
    assert not psutil.pid_exists(process.pid)


def test_a_pool_ends_where_another_takes_its_place(
    stack: Stack, waiting: tuple["subprocess.Popen[bytes]", dict[str, str]]
) -> None:
    process, added = waiting
    save_pool(stack, ENVIRONMENT, added, code_now(), 2)
    other = new_pool(stack)
    save_pool(stack, ENVIRONMENT, other, code_now(), 1)
    assert not psutil.pid_exists(process.pid)
    assert take_pool(stack, ENVIRONMENT) == (1, other)


def test_a_pool_of_a_ray_that_has_ended_is_none(stack: Stack) -> None:
    added = new_pool(stack)
    save_pool(stack, ENVIRONMENT, added, code_now(), 2)
    assert take_pool(replace(stack, ray_temp="other"), ENVIRONMENT) == (0, {})


def test_a_changed_module_is_other_code(tmp_path: Path) -> None:
    module = tmp_path / "inception" / "network.py"
    module.parent.mkdir()
    module.write_text("a = 1")
    os.utime(module, ns=(1, 1))
    before = code_now(tmp_path)
    assert code_now(tmp_path) == before
    module.write_text("a = 2")
    assert code_now(tmp_path) != before
    (module.parent / "more.py").touch()
    assert code_now(tmp_path) not in (before, "")
