"""The embedded stack: object store, MLflow and Ray on this machine, in one folder.

Every process that uses the stack holds a shared lock on `stack.lock`, which the kernel releases
however the process ends. The last one to release it stops the stack; if that process was killed, a
small reaper that waits for the same lock does it instead. A stack started by `stack up` is kept:
only `stack down` ends it. The services run in sessions of their own, so that Ctrl-C reaches only
the run, and have the stack's id in their environment, by which all their children are found.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from orchestration.errors import ServiceError
from orchestration.stack import services
from orchestration.stack.processes import MARKER, end_processes, find_process, identify
from orchestration.stack.services import Command, free_ports, is_port_free
from orchestration.stack.state import (
    HOME_VARIABLE,
    ROOT,
    SERVICES,
    Stack,
    load_stack,
    new_stack,
    renew_token,
    save_stack,
)

PORT_NAMES = {"s3": ("s3",), "mlflow": ("mlflow",), "ray": ("ray", "dashboard")}
START_LIMIT_S = 90.0
LOCK_LIMIT_S = 60.0
NEEDED_FREE_BYTES = 512 * 2**20

Log = Callable[[str], None]
Task = Callable[[], object]


def up(
    folder: Path,
    parts: frozenset[str],
    *,
    num_cpus: int,
    log: Log,
    keep: bool = True,
    ports: Mapping[str, int] | None = None,
    while_starting: Task | None = None,
) -> Stack:
    """Starts those of `parts` that do not run, calls `while_starting`, and waits until all answer.

    keep: until `stack down`. ports: by name, those asked for. (Seven parameters: the last three are
    options, each of one of the two callers.) Raises ServiceError if a port is taken, the disk is
    full, or a service ends or does not answer within 90 s.
    """
    _check_folder(folder)
    with _locked(folder / "start.lock", fcntl.LOCK_EX, "another start of this stack"):
        stack = load_stack(folder) or new_stack(folder)
        if not stack.is_any_up():
            stack = renew_token(stack)
        elif not stack.secrets.mlflow_token:
            raise ServiceError(
                f"{folder}: got a running stack of an earlier version; it answers other users too. "
                "Run `rayception stack down`, then the command again."
            )
        uses_s3 = "s3" in parts
        if stack.is_up("ray") and "ray" in parts and stack.ray_uses_own_s3 != uses_s3:
            raise ServiceError(
                f"{folder}: got a running Ray with other storage credentials than this job needs; "
                "its workers inherit those it was started with. Run `rayception stack down` first."
            )
        running = [part for part in SERVICES if part in parts and stack.is_up(part)]
        missing = [part for part in SERVICES if part in parts and part not in running]
        if running and "ray" in parts:  # a look at MLflow says no more than it must
            log(f"using {', '.join(running)}, which run already (data in {folder})")
        if missing:
            log(f"starting {', '.join(missing)} (data in {folder})")
        stack = replace(stack, kept=keep or (stack.kept and stack.is_any_up()))
        for part in missing:  # remains of a killed service would hold its port
            end_processes((), marker=f"{stack.id}:{part}")
        stack = replace(stack, ports=_choose_ports(stack, missing, ports or {}))
        if "s3" in parts:
            services.use_embedded_store(stack.secrets)
        if "ray" in parts:
            os.environ.update(services.ray_environment(stack.secrets))
        if "ray" in missing:
            stack = replace(stack, ray_temp=services.make_ray_folder(), ray_uses_own_s3=uses_s3)
        start = time.monotonic()
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for part in missing:
                command = _command(stack, part, parts, num_cpus)
                marked = {MARKER: f"{stack.id}:{part}", HOME_VARIABLE: str(folder)}
                marked |= command.environment
                started[part] = _spawn(command.arguments, marked, folder, _log_path(folder, part))
                process_id = identify(started[part].pid)
                stack = replace(stack, processes={**stack.processes, part: process_id})
                save_stack(stack)
            if not stack.kept and not find_process(stack.reaper):
                arguments = (sys.executable, "-m", "orchestration.stack.local", str(folder))
                reaper = _spawn(arguments, {}, ROOT, Path(os.devnull))
                stack = replace(stack, reaper=identify(reaper.pid))
            save_stack(stack)
            if started and while_starting is not None:  # else it need not hold the lock
                while_starting()
            _wait_ready(stack, started, log, start)
        except BaseException:
            end_processes(stack.processes.get(part) for part in started)
            raise
        return stack


def down(folder: Path, *, force: bool = False) -> bool:
    """Ends every process of the stack, and keeps its data; -> whether any ran.

    Raises ServiceError if a run uses the stack, unless `force`.
    """
    stack = load_stack(folder)
    if stack is None:
        return False
    with (folder / "stack.lock").open("a") as lock:
        if not force and not _try_lock(lock, fcntl.LOCK_EX):
            raise ServiceError(
                f"{folder}: got a run that uses this stack; it would fail. Wait for it, stop "
                "it, or call `rayception stack down --force`."
            )
        was_up = stack.is_any_up()
        _stop(stack)
        return was_up


@contextlib.contextmanager
def running_stack(
    folder: Path, parts: frozenset[str], num_cpus: int, log: Log, while_starting: Task | None = None
) -> Iterator[Stack]:
    """The stack, running for the block; stopped after it unless kept or used by another run."""
    _check_folder(folder)
    with _locked(folder / "stack.lock", fcntl.LOCK_SH, "the end of an earlier run") as lock:
        try:
            yield up(
                folder, parts, num_cpus=num_cpus, log=log, keep=False, while_starting=while_starting
            )
        finally:
            if _try_lock(lock, fcntl.LOCK_EX):  # no other run uses it
                _stop_unless_kept(folder)


def _log_path(folder: Path, part: str) -> Path:
    return folder / "logs" / f"{part}.log"


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("s3", "mlflow", "logs"):  # private, whoever may look into the folder itself
            (folder / name).mkdir(exist_ok=True)
            (folder / name).chmod(0o700)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ServiceError(
            f"{folder}: got {error.strerror}; the stack keeps its data there. Make the folder "
            "writable, or set RAYCEPTION_HOME to another one."
        ) from error
    if free < NEEDED_FREE_BYTES:
        raise ServiceError(
            f"{folder}: got {free / 2**20:.0f} MiB free on its disk; the stack needs "
            f"{NEEDED_FREE_BYTES // 2**20} MiB. Free some, or set RAYCEPTION_HOME to another disk."
        )


@contextlib.contextmanager
def _locked(path: Path, kind: int, holder: str) -> Iterator[IO[str]]:
    with path.open("a") as lock:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while not _try_lock(lock, kind):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{path}: got no lock within {LOCK_LIMIT_S:.0f} s; it waits for {holder}. "
                    "See what holds it with `lsof`, or set RAYCEPTION_HOME to another folder."
                )
            time.sleep(0.1)
        yield lock


def _try_lock(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _choose_ports(stack: Stack, missing: list[str], wanted: Mapping[str, int]) -> Mapping[str, int]:
    """The wanted ports, else the previous ones if they are still free, else any free ones."""
    ports = dict(stack.ports)
    services.reserve([*ports.values(), *wanted.values()])
    for part in missing:
        for name in PORT_NAMES[part]:
            if name in wanted:
                if not is_port_free(wanted[name]):
                    raise ServiceError(
                        f"--{name}-port: got {wanted[name]}; another process listens there. "
                        "Name another port, or leave it out for a free one."
                    )
                ports[name] = wanted[name]
            elif name not in ports or not is_port_free(ports[name]):
                ports[name] = free_ports(1)[0]
    for name, port in wanted.items():
        if ports.get(name) != port:
            raise ServiceError(
                f"--{name}-port: got {port}, but it runs on {ports.get(name)} already. "
                "Run `rayception stack down` first, or leave the port out."
            )
    return ports


def _command(stack: Stack, part: str, parts: frozenset[str], num_cpus: int) -> Command:
    if part == "s3":
        return services.s3_command(stack.folder, stack.ports["s3"], stack.secrets)
    if part == "mlflow":
        s3_url = stack.url("s3") if "s3" in parts or stack.is_up("s3") else None
        return services.mlflow_command(stack.folder, stack.ports["mlflow"], s3_url, stack.secrets)
    assert stack.ray_temp is not None
    return services.ray_command(
        Path(stack.ray_temp), stack.ports["ray"], stack.ports["dashboard"], num_cpus, stack.secrets
    )


def _spawn(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, log_file: Path
) -> "subprocess.Popen[bytes]":
    with log_file.open("wb") as output:
        return subprocess.Popen(
            arguments, env={**os.environ, **environment}, cwd=cwd, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _wait_ready(
    stack: Stack, started: Mapping[str, "subprocess.Popen[bytes]"], log: Log, start: float
) -> None:
    waiting = list(started)
    while waiting:
        for part in list(waiting):
            log_file = _log_path(stack.folder, part)
            if services.is_ready(part, stack.url(part)):
                waiting.remove(part)
                log(f"{part} at {stack.url(part)} ({time.monotonic() - start:.1f} s)")
            elif started[part].poll() is not None:
                raise ServiceError(
                    f"{part}: got exit code {started[part].returncode} at its start; "
                    f"{services.failure_reason(log_file)}. See {log_file}."
                )
            elif time.monotonic() - start > START_LIMIT_S:
                raise ServiceError(
                    f"{part}: got no answer within {START_LIMIT_S:.0f} s; "
                    f"{services.failure_reason(log_file)}. See {log_file}, and run the command "
                    "again."
                )
        time.sleep(0.1)


def _stop(stack: Stack) -> None:
    reaper = None if stack.reaper and stack.reaper[0] == os.getpid() else stack.reaper
    # Ray has no state to lose, and would take 15 s after SIGTERM; the others take three seconds.
    others = [process_id for part, process_id in stack.processes.items() if part != "ray"]
    end_processes([*others, reaper], kill=[stack.processes.get("ray")], marker=stack.id)
    if stack.ray_temp:
        _save_ray_logs(Path(stack.ray_temp), stack.folder / "logs" / "ray")
    save_stack(replace(stack, kept=False, processes={}, reaper=None, ray_temp=None))


def _save_ray_logs(temp: Path, target: Path) -> None:
    """Moves the logs out of Ray's temporary folder: the workers' explain a failure."""
    if logs := sorted(temp.glob("session_2*/logs")):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(logs[-1], target, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(temp, ignore_errors=True)


def _stop_unless_kept(folder: Path) -> None:
    """Called with the exclusive lock."""
    stack = load_stack(folder)
    if stack is not None and not stack.kept:
        _stop(stack)


if __name__ == "__main__":  # the reaper: waits until nobody uses the stack
    home = Path(sys.argv[1])
    with (home / "stack.lock").open("a") as stack_lock:
        fcntl.flock(stack_lock, fcntl.LOCK_EX)
        _stop_unless_kept(home)
