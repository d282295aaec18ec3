"""Metric points, sent beside training and kept in the run's storage while MLflow is away."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from datasets.errors import StoreError
from orchestration.tracking.outbox import Outbox, Point
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import answering, refusal, refused_with

logger = logging.getLogger(__name__)

MAX_BATCH_METRICS = 1000  # the server's limit for one log_batch
FLUSH_EVERY_S = 1.0
KEEP_EVERY_S = 5.0  # while the server is away
SETTLE_LIMIT_S = 2.0
CLOSE_LIMIT_S = 15.0
AWAY_CLOSE_LIMIT_S = 3.0  # where the server did not answer last time: what is kept is not lost
JOIN_LIMIT_S = 120.0  # of storage's own patience


class MetricWriter:
    """Sends one writer's metric points from a thread, so that no step waits for the server.

    Points are batched for a second, and kept and retried in order while the server is away; every
    few seconds of that they are written to the run's outbox, which the next attempt, or `sync`,
    sends first. A point carries its own time, so the server stores a retried one once. Steps that
    an earlier attempt logged already, to MLflow or to the outbox, are dropped: they are the same
    numbers, computed again.
    """

    def __init__(self, run: RunRef, outbox: Outbox, who: str) -> None:
        """Raises StoreError where the outbox cannot be read."""
        self._run, self._outbox, self._who = run, outbox, who
        self._client = MlflowClient(tracking_uri=run.uri)
        kept = outbox.points(who)
        self._kept = list(kept)  # objects of the outbox
        self._points = [point for points in kept.values() for point in points]
        self._num_kept = len(self._points)  # of the first points, how many lie in the outbox
        self._newest = newest_steps(self._points)  # of the earlier attempts
        self._logged: dict[str, int] = {}  # the last step of each key on the server
        self._lock = threading.Lock()  # of the points
        self._sending = threading.Lock()  # held by who sends or keeps
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one value a key at `step`; returns at once."""
        now_ms = int(time.time() * 1000)
        points = [
            (key, float(value), now_ms, step)
            for key, value in metrics.items()
            if step > self._newest.get(key, -1)
        ]
        with self._lock:
            self._points += points

    def unsent(self) -> list[Point]:
        """The points that the server has not taken yet, oldest first."""
        with self._lock:
            return list(self._points)

    def settle(self) -> None:
        """Returns when what was logged before the call lies on the server or in the outbox: in a
        moment, or, where the server is away, once storage has taken it. A checkpoint may count
        then. Raises StoreError."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        last = self.unsent()[-1:]
        while last and last[0] in self.unsent():
            if time.monotonic() > deadline:
                self._keep()
                return
            self._wake.set()
            time.sleep(0.05)

    def close(self) -> int:
        """Sends what is left, for at most 15 s (3 where the server is away), and keeps the rest;
        -> how many points were kept.

        Raises StoreError where they could be neither sent nor kept.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(JOIN_LIMIT_S)
        if left := self.unsent():
            self._keep()
        return len(left)

    def _send_all(self) -> None:
        kept_at = time.monotonic()
        deadline: float | None = None
        waits_for: list[int | None] = []  # the refusal that was told: once, not each second
        while True:
            self._wake.wait(FLUSH_EVERY_S)
            self._wake.clear()
            if self._closing and deadline is None:
                limit_s = AWAY_CLOSE_LIMIT_S if waits_for else CLOSE_LIMIT_S
                deadline = time.monotonic() + limit_s
            try:
                with self._sending:
                    self._send()
                kept_at = time.monotonic()
                if waits_for:
                    logger.warning("MLflow takes metrics again")
                    waits_for = []
            except (MlflowException, OSError) as error:
                if waits_for != (met := [refused_with(error)]):
                    why = refusal(self._run.uri, error)
                    logger.warning("metrics wait until MLflow takes them: %s", why)
                    waits_for = met
                if time.monotonic() - kept_at > KEEP_EVERY_S:
                    self._try_to_keep()
                    kept_at = time.monotonic()
                time.sleep(FLUSH_EVERY_S)
            if deadline is not None and (not self.unsent() or time.monotonic() > deadline):
                return

    def _send(self) -> None:
        """Sends all that is queued, in batches; a batch leaves the queue when it was taken."""
        while batch := self.unsent()[:MAX_BATCH_METRICS]:
            send_points(self._client, self._run, batch, self._logged)
            with self._lock:
                del self._points[: len(batch)]
                self._num_kept = max(0, self._num_kept - len(batch))
        if self._kept:
            gone, self._kept = self._kept, []
            try:
                self._outbox.drop(gone)
            except StoreError as error:
                logger.warning("the outbox keeps what was sent: %s", error)

    def _keep(self) -> None:
        """Writes to the outbox what is neither sent nor there. Raises StoreError."""
        with self._sending:
            fresh = self.unsent()[self._num_kept :]
            if fresh:
                self._kept.append(self._outbox.keep_points(self._who, fresh))
                self._num_kept += len(fresh)

    def _try_to_keep(self) -> None:
        try:
            self._keep()
        except StoreError as error:
            logger.warning("metrics are kept in memory alone: %s", error)


def send_kept(run: RunRef, outbox: Outbox) -> int:
    """Sends every writer's points from the outbox, in order; -> how many there were.

    Raises ServiceError where the server does not answer, StoreError.
    """
    client, count = MlflowClient(tracking_uri=run.uri), 0
    with answering(run.uri):
        for who in outbox.writers():
            logged: dict[str, int] = {}
            for url, points in outbox.points(who).items():
                for i in range(0, len(points), MAX_BATCH_METRICS):
                    send_points(client, run, points[i : i + MAX_BATCH_METRICS], logged)
                outbox.drop([url])
                count += len(points)
    return count


def newest_steps(points: Sequence[Point]) -> dict[str, int]:
    """The last step of each key."""
    newest: dict[str, int] = {}
    for key, _, _, step in points:
        newest[key] = max(step, newest.get(key, -1))
    return newest


def send_points(
    client: MlflowClient, run: RunRef, batch: Sequence[Point], logged: dict[str, int]
) -> None:
    """Sends at most 1,000 points, without those of steps that the server has. logged: the last step
    of each key on the server, asked for where it is missing. Raises MlflowException, OSError."""
    newest = newest_steps(batch)
    for key in newest.keys() - logged.keys():
        logged[key] = last_step(run, key)
    fresh = [
        Metric(key, _storable(value), at, step)
        for key, value, at, step in batch
        if step > logged[key]
    ]
    if fresh:
        client.log_batch(run.run_id, metrics=fresh)
    for key, step in newest.items():
        logged[key] = max(step, logged[key])


def _storable(value: float) -> float:
    """MLflow stores what is no number as 0 and marks it; an infinity it makes 1.8e308."""
    return math.nan if math.isinf(value) else value


def last_step(run: RunRef, key: str) -> int:
    """The last step at which `key` was logged, -1 for none."""
    history = MlflowClient(tracking_uri=run.uri).get_metric_history(run.run_id, key)
    return max((point.step for point in history), default=-1)
