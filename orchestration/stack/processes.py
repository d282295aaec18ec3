"""Processes that outlive a command: identified by pid and start time, ended with all children."""

import contextlib
import os
from collections.abc import Iterable

import psutil

ProcessId = tuple[int, float]  # pid and start time: a pid alone may be reused
MARKER = "RAYCEPTION_STACK"  # environment variable of every process of a stack
STOP_LIMIT_S = 15.0


def identify(pid: int) -> ProcessId:
    """Raises psutil.NoSuchProcess."""
    return pid, float(psutil.Process(pid).create_time())


def find_process(process_id: ProcessId | None) -> psutil.Process | None:
    """The process if it is still running."""
    if process_id is None:
        return None
    pid, start_time = process_id
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - start_time) < 0.01
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def end_processes(
    terminate: Iterable[ProcessId | None],
    *,
    kill: Iterable[ProcessId | None] = (),
    marker: str | None = None,
) -> None:
    """Ends processes and their children.

    terminate: get SIGTERM, and SIGKILL after 15 s. kill: get SIGKILL at once. marker: also every
    process whose MARKER variable begins with it, with SIGKILL once the others have ended.
    """
    terminated = _running(terminate)
    remaining = [member for process in terminated for member in _with_children(process)]
    for process in terminated:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    killed = [member for process in _running(kill) for member in _with_children(process)]
    _kill(killed)
    psutil.wait_procs(terminated, timeout=STOP_LIMIT_S)
    remaining += killed
    if marker is not None:
        remaining += marked_processes(marker)
    _kill(remaining)
    psutil.wait_procs(remaining, timeout=STOP_LIMIT_S)


def _running(process_ids: Iterable[ProcessId | None]) -> list[psutil.Process]:
    return [process for process_id in process_ids if (process := find_process(process_id))]


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    """All descendants, then the process itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*process.children(recursive=True), process]
    return [process]


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def marked_processes(marker: str) -> list[psutil.Process]:
    """Every process whose MARKER variable begins with `marker`, except this one."""
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARKER, "").startswith(marker):
                marked.append(process)
    return marked
