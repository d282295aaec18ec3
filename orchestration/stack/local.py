"""The embedded stack: object store, MLflow and Ray on this machine, in one folder.

Who keeps it alive: everyone who uses the stack holds a shared lock on `stack.lock`, which the
kernel releases however the holder ends. Whoever lets go last turns the stack off; if that process
was killed, a small reaper, waiting for the same lock, does it instead. `stack up` marks the stack
as kept: then only `stack down` ends it. The services run in sessions of their own, so Ctrl-C
reaches the run and not them, and carry the stack's id in their environment, by which the last of
their children is found.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

from orchestration.errors import ServiceError
from orchestration.stack import services
from orchestration.stack.processes import MARKER, Who, end_processes, find_process, identify
from orchestration.stack.services import Command, free_ports, is_port_free
from orchestration.stack.state import PARTS, ROOT, Stack, load_stack, new_stack, save_stack

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
    meanwhile: Task | None = None,
) -> Stack:
    """Starts what is not running of `parts`; calls `meanwhile`, if any; waits until each answers.

    Raises ServiceError: a wanted port is taken, the disk is full, a service ends or does not
    answer within 90 s (with the end of its log).
    """
    _check_folder(folder)
    with _locked(folder / "start.lock", fcntl.LOCK_EX, "another start of this stack"):
        stack = load_stack(folder) or new_stack(folder)
        uses_s3 = "s3" in parts
        if stack.is_up("ray") and "ray" in parts and stack.ray_uses_own_s3 != uses_s3:
            raise ServiceError(
                f"{folder}: got a running Ray with other storage credentials than this job needs; "
                "its workers inherit those it was started with. Run `rayception stack down` first."
            )
        missing = [part for part in PARTS if part in parts and not stack.is_up(part)]
        stack = replace(stack, kept=keep or (stack.kept and stack.is_any_up()))
        for part in missing:  # what a killed service left behind would hold its port
            end_processes((), marker=f"{stack.id}:{part}")
        stack = replace(stack, ports=_choose_ports(stack, missing, ports or {}))
        if "s3" in parts:
            os.environ.update(services.s3_environment(stack.secrets))
            os.environ.pop("AWS_SESSION_TOKEN", None)  # it belongs to other credentials
        if "ray" in parts:
            os.environ.update(services.ray_environment(stack.secrets))
        if "ray" in missing:
            stack = replace(
                stack, ray_temp=tempfile.mkdtemp(prefix="rayception-"), ray_uses_own_s3=uses_s3
            )
        begin = time.monotonic()
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for part in missing:
                started[part] = _spawn(stack, part, _command(stack, part, parts, num_cpus))
                who = identify(started[part].pid)
                stack = replace(stack, processes={**stack.processes, part: who})
                save_stack(stack)
            if not stack.kept and not find_process(stack.reaper):
                stack = replace(stack, reaper=_spawn_reaper(folder))
            save_stack(stack)
            if started and meanwhile is not None:  # nothing to wait for: no work under the lock
                meanwhile()
            _wait_ready(stack, started, log, begin)
        except BaseException:
            end_processes(stack.processes.get(part) for part in started)
            raise
        return stack


def down(folder: Path, *, force: bool = False) -> bool:
    """Ends every process of the stack; the data stay. False where nothing ran.

    Raises ServiceError where a run uses the stack, unless `force`.
    """
    stack = load_stack(folder)
    if stack is None:
        return False
    with contextlib.ExitStack() as held:
        if not force:
            lock = held.enter_context((folder / "stack.lock").open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ServiceError(
                    f"{folder}: got a run that uses this stack; it would fail. Wait for it, stop "
                    "it, or call `rayception stack down --force`."
                ) from error
        was_up = stack.is_any_up()
        _turn_off(stack)
        return was_up


@contextlib.contextmanager
def using(
    folder: Path, parts: frozenset[str], num_cpus: int, log: Log, meanwhile: Task | None = None
) -> Iterator[Stack]:
    """The stack while the block lasts; turned off after it unless kept or used elsewhere."""
    _check_folder(folder)
    with _locked(folder / "stack.lock", fcntl.LOCK_SH, "the end of an earlier run") as lock:
        try:
            yield up(folder, parts, num_cpus=num_cpus, log=log, keep=False, meanwhile=meanwhile)
        finally:
            with contextlib.suppress(BlockingIOError):  # another run goes on using it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stack = load_stack(folder)
                if stack is not None and not stack.kept:
                    _turn_off(stack)


def log_path(folder: Path, part: str) -> Path:
    return folder / "logs" / f"{part}.log"


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
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
def _locked(path: Path, kind: int, what: str) -> Iterator[IO[str]]:
    with path.open("a") as lock:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"{path}: got no lock within {LOCK_LIMIT_S:.0f} s; it waits for {what}. "
                        "See what holds it with `lsof`, or set RAYCEPTION_HOME to another folder."
                    ) from error
                time.sleep(0.1)
        yield lock


def _choose_ports(stack: Stack, missing: list[str], wanted: Mapping[str, int]) -> Mapping[str, int]:
    """The wanted ports, else those of last time where still free, else free ones."""
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
        s3_url = stack.s3_url if "s3" in parts or stack.is_up("s3") else None
        return services.mlflow_command(stack.folder, stack.ports["mlflow"], s3_url, stack.secrets)
    assert stack.ray_temp is not None
    return services.ray_command(
        Path(stack.ray_temp), stack.ports["ray"], stack.ports["dashboard"], num_cpus, stack.secrets
    )


def _spawn(stack: Stack, part: str, command: Command) -> "subprocess.Popen[bytes]":
    log_file = log_path(stack.folder, part)
    with log_file.open("wb") as out:
        return subprocess.Popen(
            command.arguments,
            env={**os.environ, **command.environment, MARKER: f"{stack.id}:{part}"},
            cwd=stack.folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _spawn_reaper(folder: Path) -> Who:
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestration.stack.local", str(folder)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return identify(process.pid)


def _wait_ready(
    stack: Stack, started: Mapping[str, "subprocess.Popen[bytes]"], log: Log, begin: float
) -> None:
    checks: dict[str, Callable[[], bool]] = {
        "s3": lambda: services.s3_is_ready(stack.ports["s3"]),
        "mlflow": lambda: services.mlflow_is_ready(stack.ports["mlflow"]),
        "ray": lambda: services.ray_is_ready(stack.ports["dashboard"]),
    }
    waiting = list(started)
    while waiting:
        for part in list(waiting):
            log_file = log_path(stack.folder, part)
            if checks[part]():
                waiting.remove(part)
                log(f"{part} at {stack.url(part)} ({time.monotonic() - begin:.1f} s)")
            elif started[part].poll() is not None:
                raise ServiceError(
                    f"{part}: got exit code {started[part].returncode} at its start; "
                    f"{services.last_words(log_file)}. See {log_file}."
                )
            elif time.monotonic() - begin > START_LIMIT_S:
                raise ServiceError(
                    f"{part}: got no answer within {START_LIMIT_S:.0f} s; "
                    f"{services.last_words(log_file)}. See {log_file}, and run the command again."
                )
        time.sleep(0.1)


def _turn_off(stack: Stack) -> None:
    reaper = None if stack.reaper and stack.reaper[0] == os.getpid() else stack.reaper
    # Ray keeps nothing that an abrupt end could hurt, and after a run its SIGTERM takes 15 s; the
    # store and MLflow take three seconds meanwhile.
    others = [who for part, who in stack.processes.items() if part != "ray"]
    end_processes([*others, reaper], at_once=[stack.processes.get("ray")], marker=stack.id)
    if stack.ray_temp:
        _keep_ray_logs(Path(stack.ray_temp), stack.folder / "logs" / "ray")
    save_stack(replace(stack, kept=False, processes={}, reaper=None, ray_temp=None))


def _keep_ray_logs(temp: Path, target: Path) -> None:
    """The workers' logs outlive Ray's temporary folder: they are what explains a failure."""
    for session in sorted(temp.glob("session_2*")):
        if (session / "logs").is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(session / "logs", target, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(temp, ignore_errors=True)


def _reap(folder: Path) -> None:
    """The reaper: waits until nobody holds the stack, then turns it off unless it is kept."""
    with (folder / "stack.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stack = load_stack(folder)
        if stack is not None and not stack.kept:
            _turn_off(stack)


if __name__ == "__main__":
    _reap(Path(sys.argv[1]))
