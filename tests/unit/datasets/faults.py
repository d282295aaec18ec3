"""A proxy before a real HTTP server that breaks things as networks and stores do."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(SLOW_DOWN), SLOW_DOWN)
)
FAULTS = ("busy", "reset", "truncated", "stall", "slow")
NOTHING = "nothing"  # an answer's head and no body: a store that is not there for now


@dataclass
class Faults:
    """Which faults come, how often, and what came. stall_s: how long a connection falls silent."""

    url: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    stall_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    connections: int = 0


@contextmanager
def faulty(
    target: str, shares: dict[str, float], *, stall_s: float, seed: int, in_a_row: int | None = 5
) -> Iterator[Faults]:
    """A proxy to target, http://HOST:PORT. Each request meets a fault with the share's probability,
    up to three in a row: a burst. Requests for one end of one object meet at most `in_a_row`
    together, whatever the bursts of several threads fall on: more is a store that is away."""
    host, port = target.removeprefix("http://").split(":")
    faults = Faults(shares=shares, stall_s=stall_s)
    choose, lock = random.Random(seed), threading.Lock()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.settimeout(0.2)
    faults.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = threading.Event()
    burst: list[str] = []
    met: Counter[bytes] = Counter()

    def next_fault(head: bytes) -> tuple[str | None, int]:
        """The fault of a request, and after how many bytes of the answer it comes."""
        aim = aim_of(head)
        with lock:
            if met[aim] == in_a_row:
                met[aim] = 0
                return None, 0
            if not burst and choose.random() < sum(shares.values()):
                kind = choose.choices(list(shares), list(shares.values()))[0]
                burst.extend([kind] * choose.randint(1, 3))
            found = burst.pop() if burst else None
            met[aim] = 0 if found is None else met[aim] + 1
            if found is not None:
                faults.seen[found] += 1
            return found, choose.randint(400, 60_000)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((host, int(port)), timeout=30) as upstream:
            client.settimeout(30)
            pending = b""
            while not done.is_set():
                request = read_head(client, pending)
                if request is None:
                    return
                head, pending = request
                kind, after = next_fault(head)
                if kind == "busy":
                    client.sendall(BUSY)
                    return
                # The tests' faulty traffic is GET alone: a head is a whole request.
                upstream.sendall(head)
                if not answer(client, upstream, kind, after, faults, head.startswith(b"HEAD")):
                    return

    def accept() -> None:
        while not done.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            faults.connections += 1
            threading.Thread(target=quietly, args=(serve, client), daemon=True).start()

    server = threading.Thread(target=accept, daemon=True)
    server.start()
    try:
        yield faults
    finally:
        done.set()
        server.join(5)
        listener.close()


def quietly(serve: Callable[[socket.socket], None], client: socket.socket) -> None:
    try:
        serve(client)
    except OSError:  # the other side hung up: what faults are about
        client.close()


def aim_of(head: bytes) -> bytes:
    """What a request is for, whichever byte it begins at: its path and its range's last byte."""
    ranges = [line for line in head.lower().split(b"\r\n") if line.startswith(b"range:")]
    last = ranges[0].rpartition(b"-")[2] if ranges else b""
    return head.split(b" ", 2)[1] + b"-" + last


def read_head(source: socket.socket, pending: bytes) -> tuple[bytes, bytes] | None:
    """(head with its blank line, what came after it) of a message; None at the end."""
    while b"\r\n\r\n" not in pending:
        chunk = source.recv(65536)
        if not chunk:
            return None
        pending += chunk
    head, _, rest = pending.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def answer(
    client: socket.socket, upstream: socket.socket, kind: str | None, after: int, faults: Faults,
    has_no_body: bool,
) -> bool:  # fmt: skip
    """Hands one answer on, broken as `kind` says; False where the connection is over."""
    found = read_head(upstream, b"")
    if found is None:
        return False
    head, body = found
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )  # fmt: skip
    if has_no_body:
        length = 0
    client.sendall(head)
    if kind == NOTHING:
        return False
    sent = 0
    while True:
        if kind in ("reset", "truncated", "stall") and sent + len(body) >= min(after, length - 1):
            client.sendall(body[: max(0, min(after, length - 1) - sent)])
            if kind == "stall":
                time.sleep(faults.stall_s)
            elif kind == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if kind == "slow":
            time.sleep(0.02)
        client.sendall(body)
        sent += len(body)
        if sent >= length:
            return True
        body = upstream.recv(65536)
        if not body:
            return False
