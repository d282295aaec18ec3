"""Worker processes that a kept stack holds ready for the ranks of its next run.

At its end, a run on a stack started by `stack up` asks Ray for as many processes as it had ranks;
they belong to no job yet, and import while nobody waits. The next run takes them if its ranks have
the same environment and code, and ends them otherwise.
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
from orchestration.stack.state import PACKAGES, ROOT, Stack

POOL_FILE = "worker-pool.json"


def take_pool(stack: Stack, environment: Mapping[str, str]) -> tuple[int, dict[str, str]]:
    """Takes the pool for ranks with this environment; -> (its processes, the variables to add to
    that environment so that Ray gives the ranks these processes)."""
    pool = _claim(stack)
    if pool is None:
        return 0, {}
    if pool["environment"] != dict(environment) or pool["code"] != code_digest():
        end_processes((), marker=pool["marker"])
        return 0, {}
    return int(pool["ranks"]), {MARKER: pool["marker"]}


def _claim(stack: Stack) -> dict[str, Any] | None:
    """The file's content, if its pool is alive. Only one of several runs gets it."""
    claimed = stack.folder / f"{POOL_FILE}.{os.getpid()}"
    try:
        (stack.folder / POOL_FILE).rename(claimed)
        pool: dict[str, Any] = json.loads(claimed.read_text())
        claimed.unlink()
    except (OSError, ValueError):
        return None
    return pool if pool["ray"] == stack.ray_temp else None  # else it ended with its Ray


def new_pool(stack: Stack, environment: Mapping[str, str]) -> dict[str, Any]:
    """A pool of processes yet to start, with this environment and, as MARKER, its `marker`."""
    return {
        "ray": stack.ray_temp,
        "environment": dict(environment),
        "marker": f"{stack.id}:ray:{secrets.token_hex(4)}",
        "code": code_digest(),
    }


def save_pool(stack: Stack, pool: Mapping[str, Any], ranks: int) -> None:
    """Saves a pool of `ranks` processes for the next run; ends one that another run has left."""
    if (other := _claim(stack)) is not None:
        end_processes((), marker=other["marker"])
    temporary = stack.folder / f"{POOL_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps({**pool, "ranks": ranks}))
    temporary.rename(stack.folder / POOL_FILE)


def code_digest(root: Path = ROOT) -> str:
    """Changes when a module of this checkout changes, or a package is installed."""
    files = [file for name in PACKAGES for file in sorted((root / name).rglob("*.py"))]
    files.append(Path(sysconfig.get_path("purelib")))
    times = [(str(file), _modified_ns(file)) for file in files]
    return hashlib.sha256(repr(times).encode()).hexdigest()


def _modified_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # deleted since it was listed
        return -1
