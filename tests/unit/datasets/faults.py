"""A proxy in front of a real HTTP server, with the faults of networks and object stores."""

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
NOTHING = "nothing"  # the head of a response and no body, as from an unreachable store


@dataclass
class Faults:
    """shares: probability of each fault. stall_s: silence of a stalled connection. seen: counts."""

    url: str = ""
    shares: dict[str, float] = field(default_factory=dict)
    stall_s: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    connections: int = 0


@contextmanager
def faulty(
    target: str, shares: dict[str, float], *, stall_s: float, seed: int, in_a_row: int | None = 5
) -> Iterator[Faults]:
    """A proxy to target, http://HOST:PORT. A request meets a fault with the share's probability, up
    to three in a row: a burst. Requests for one end of one object meet at most `in_a_row` in a row,
    however the bursts fall on several threads: more would be an unreachable store."""
    host, port = target.removeprefix("http://").split(":")
    faults = Faults(shares=shares, stall_s=stall_s)
    rng, lock = random.Random(seed), threading.Lock()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.settimeout(0.2)
    faults.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = threading.Event()
    burst: list[str] = []
    consecutive: Counter[bytes] = Counter()

    def next_fault(head: bytes) -> tuple[str | None, int]:
        """The fault of a request, and after how many bytes of the response it comes."""
        goal = goal_of(head)
        with lock:
            if consecutive[goal] == in_a_row:
                consecutive[goal] = 0
                return None, 0
            if not burst and rng.random() < sum(shares.values()):
                kind = rng.choices(list(shares), list(shares.values()))[0]
                burst.extend([kind] * rng.randint(1, 3))
            fault = burst.pop() if burst else None
            consecutive[goal] = 0 if fault is None else consecutive[goal] + 1
            if fault is not None:
                faults.seen[fault] += 1
            return fault, rng.randint(400, 60_000)

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
                # All requests behind faults are GET: the head is the whole request.
                upstream.sendall(head)
                if not forward(client, upstream, kind, after, faults, head.startswith(b"HEAD")):
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
    except OSError:  # the other side hung up, as faults make it do
        client.close()


def goal_of(head: bytes) -> bytes:
    """The path and the last byte of a request's range, whichever byte it begins at."""
    ranges = [line for line in head.lower().split(b"\r\n") if line.startswith(b"range:")]
    last = ranges[0].rpartition(b"-")[2] if ranges else b""
    return head.split(b" ", 2)[1] + b"-" + last


def read_head(source: socket.socket, pending: bytes) -> tuple[bytes, bytes] | None:
    """(head with its blank line, the bytes after it) of a message; None at the end."""
    while b"\r\n\r\n" not in pending:
        chunk = source.recv(65536)
        if not chunk:
            return None
        pending += chunk
    head, _, rest = pending.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def forward(
    client: socket.socket, upstream: socket.socket, kind: str | None, after: int, faults: Faults,
    has_no_body: bool,
) -> bool:  # fmt: skip
    """Forwards one response, broken by the fault `kind`; False if the connection is over."""
    response = read_head(upstream, b"")
    if response is None:
        return False
    head, body = response
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
