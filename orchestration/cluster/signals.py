"""How a run is told to end: Ctrl-C (SIGINT), a termination (SIGTERM), a closed terminal (SIGHUP).

A terminal that closes can send its signal twice, from the kernel and from the shell: it counts
once, as a second ending would end the ranks before their checkpoint.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

STANDARD_OUTPUTS = (1, 2)


def handle_endings(handler: Callable[..., Any] = signal.default_int_handler) -> None:
    """Calls `handler` at each of the signals; left out: raises KeyboardInterrupt.

    Once its terminal is closed, what the command prints goes to a file: writing to the terminal
    would fail, and end the run before its checkpoint. A hang-up that is ignored (nohup) stays so.
    """
    from orchestration.stack.state import stack_folder  # psutil: not for commands that plan

    # A closed terminal does not say that it is one.
    terminals = [number for number in STANDARD_OUTPUTS if os.isatty(number)]

    def handle_hangup(*arguments: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _send_output_to_file(terminals, stack_folder() / "logs")
        handler(*arguments)

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle_hangup)


def _send_output_to_file(terminals: list[int], folder: Path) -> None:
    if not terminals:
        return
    log_file = folder / f"after-hangup-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(target, number)
    os.close(target)
