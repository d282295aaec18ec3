"""Processes that outlive a call: known by pid and start time, ended with all their children."""

import contextlib
import os
from collections.abc import Iterable

import psutil

# Who a process is: its pid and its start time (a pid alone may belong to another one by now).
Who = tuple[int, float]
MARKER = "RAYCEPTION_STACK"
STOP_LIMIT_S = 15.0


def identify(pid: int) -> Who:
    """Raises psutil.NoSuchProcess."""
    return pid, float(psutil.Process(pid).create_time())


def find_process(who: Who | None) -> psutil.Process | None:
    """This very process where it still runs, else None."""
    if who is None:
        return None
    try:
        process = psutil.Process(who[0])
        same = abs(process.create_time() - who[1]) < 0.01
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def end_processes(
    whos: Iterable[Who | None],
    *,
    at_once: Iterable[Who | None] = (),
    marker: str | None = None,
    patience_s: float = STOP_LIMIT_S,
) -> None:
    """SIGTERM and some patience, then SIGKILL to what is left, children included.

    at_once: these get SIGKILL while the others have time. marker: also ends every process whose
    environment's MARKER begins with it.
    """
    processes = [process for who in whos if (process := find_process(who)) is not None]
    hopeless = [process for who in at_once if (process := find_process(who)) is not None]
    everything = [one for process in processes for one in _family(process)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    dying = [one for process in hopeless for one in _family(process)]
    _kill(dying)
    everything += dying
    psutil.wait_procs(processes, timeout=patience_s)
    if marker is not None:
        everything += marked_processes(marker)
    _kill(everything)
    psutil.wait_procs(everything, timeout=STOP_LIMIT_S)


def _family(process: psutil.Process) -> list[psutil.Process]:
    """All its descendants, and itself last."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*process.children(recursive=True), process]
    return [process]


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def marked_processes(marker: str) -> list[psutil.Process]:
    """Every other process whose environment's MARKER begins with `marker`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARKER, "").startswith(marker):
                found.append(process)
    return found
