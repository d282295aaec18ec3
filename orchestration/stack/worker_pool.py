"""Processes that a kept stack holds ready for the ranks of its next run.

A run on a stack that `stack up` keeps ends by asking Ray for as many as it had ranks, of no job
yet; they import while nobody waits. The next run takes them where they are just what its ranks
would be (the same environment, of the code as it is now), and ends them where they are not.
"""

import hashlib
import json
import os
import secrets
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestration.stack.processes import MARKER, end_processes
from orchestration.stack.state import ROOT, Stack

FILE = "worker-pool.json"
PACKAGES = ("orchestration", "inception", "datasets")


def take_pool(stack: Stack, environment: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """The processes that wait for ranks with that environment, this run's alone from now on; ->
    (how many, what is to be added to the ranks' environment for Ray to give them these)."""
    found = _claim(stack)
    if found is None:
        return 0, {}
    if found["environment"] != dict(environment) or found["code"] != code_now():
        end_processes((), marker=found["marker"])
        return 0, {}
    return int(found["ranks"]), {MARKER: found["marker"]}


def _claim(stack: Stack) -> dict[str, Any] | None:
    """What the file holds of a pool that is there; nobody else gets it then."""
    mine = stack.folder / f"{FILE}.{os.getpid()}"
    try:
        (stack.folder / FILE).rename(mine)  # two runs may begin at once
        found: dict[str, Any] = json.loads(mine.read_text())
        mine.unlink()
    except (OSError, ValueError):
        return None
    return found if found["ray"] == stack.ray_temp else None  # else they ended with their Ray


def new_pool(stack: Stack) -> dict[str, str]:
    """What is added to the environment of a new pool's processes: by it they are told apart."""
    return {MARKER: f"{stack.id}:ray:{secrets.token_hex(4)}"}


def save_pool(
    stack: Stack, environment: Mapping[str, str], added: Mapping[str, str], code: str, ranks: int
) -> None:
    """Keeps for the next run what was asked for: so many processes of `code`, in `environment` and
    what was added. Of the pool that another run left meanwhile nothing stays."""
    if (other := _claim(stack)) is not None:
        end_processes((), marker=other["marker"])
    values = {
        "ray": stack.ray_temp,
        "environment": dict(environment),
        "marker": added[MARKER],
        "code": code,
        "ranks": ranks,
    }
    temporary = stack.folder / f"{FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(values))
    temporary.rename(stack.folder / FILE)


def code_now(root: Path = ROOT) -> str:
    """Changes when a module of this checkout changes, or a package is installed."""
    files = [file for name in PACKAGES for file in sorted((root / name).rglob("*.py"))]
    packages = Path(sysconfig.get_path("purelib"))
    seen = [(str(file), _changed_at(file)) for file in (*files, packages)]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # gone since it was listed: changed
        return -1
