"""How a run is told to end: Ctrl-C (SIGINT), a termination (SIGTERM), a closed terminal (SIGHUP).

A terminal that closes can send its signal twice, from the kernel and from the shell: it counts
once, as a second ending would end the ranks before their checkpoint. What the command prints goes
to a file from then on: writing to a closed terminal fails, which may be noticed before the signal.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def handle_endings(handler: Callable[..., Any] = signal.default_int_handler) -> None:
    """Calls `handler` at each of the signals; left out: raises KeyboardInterrupt. A hang-up that is
    ignored (nohup) stays so."""
    from orchestration.stack.state import stack_folder  # psutil: not for commands that plan

    folder = stack_folder() / "logs"
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        is_text = isinstance(stream, io.TextIOWrapper)
        if is_text and stream.isatty() and _terminal(stream) is None:  # not at every attempt
            setattr(sys, name, _Terminal.wrap(stream, folder))

    def handle_hangup(*arguments: Any) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for stream in (sys.stdout, sys.stderr):
            if (terminal := _terminal(stream)) is not None:
                terminal.leave()
        handler(*arguments)

    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handle_hangup)


class _Terminal(io.FileIO):
    """A standard output to a terminal; to a file in `folder` once that is closed."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(number, "w", closefd=False)
        self._folder = folder

    @classmethod
    def wrap(cls, stream: io.TextIOWrapper, folder: Path) -> io.TextIOWrapper:
        stream.flush()
        raw = io.BufferedWriter(cls(stream.fileno(), folder))
        return io.TextIOWrapper(
            raw, encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.leave()
            return super().write(content)

    def leave(self) -> None:
        """The descriptor becomes the file's, also for libraries that write to it themselves."""
        log_file = self._folder / f"after-hangup-{os.getpid()}.log"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            target = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, self.fileno())
        os.close(target)


def _terminal(stream: object) -> _Terminal | None:
    """What `wrap` put under a stream."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Terminal) else None
