"""Metric points, sent in the background and stored in the outbox while MLflow is unreachable."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from datasets.errors import StoreError
from orchestration.tracking.credentials import set_credentials
from orchestration.tracking.mlflow_errors import denied_status, describe_error
from orchestration.tracking.outbox import Outbox, Point
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import connect, make_metric, metric_name

logger = logging.getLogger(__name__)

MAX_BATCH_METRICS = 1000  # the server's limit for one log_batch
FLUSH_EVERY_S = 1.0
STORE_EVERY_S = 5.0  # while the server is unreachable
SETTLE_LIMIT_S = 2.0
CLOSE_LIMIT_S = 15.0
UNREACHABLE_CLOSE_LIMIT_S = 3.0  # if the last request failed: the outbox takes the rest
JOIN_LIMIT_S = 120.0  # covers storage's own retries


class MetricWriter:
    """Sends one writer's metric points from a thread, so that no step waits for the server.

    Points are sent once a second in batches, and retried in order while the server is unreachable;
    meanwhile they are written to the run's outbox every few seconds, from where the next attempt or
    `sync` sends them first. A point carries its own time, so the server stores a retried one once.
    Points of steps that an earlier attempt logged, to MLflow or to the outbox, are dropped: they
    have the same values.
    """

    def __init__(self, run: RunRef, outbox: Outbox, writer: str) -> None:
        """writer: its name in the outbox. Raises StoreError if the outbox cannot be read."""
        self._run, self._outbox, self._name = run, outbox, writer
        self._client = MlflowClient(tracking_uri=run.uri)
        stored = outbox.points(writer)
        self._stored_urls = list(stored)
        self._points = [point for points in stored.values() for point in points]
        self._num_stored = len(self._points)  # the first points of the queue are in the outbox
        self._newest = _newest_steps(self._points)  # of the earlier attempts
        self._logged: dict[str, int] = {}  # the last step of each key on the server
        self._lock = threading.Lock()  # of the points
        self._sending = threading.Lock()  # held while points are sent or stored
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._send_regularly, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one value a key at `step`; returns at once."""
        now_ms = int(time.time() * 1000)
        points = [
            (key, float(value), now_ms, step)
            for key, value in ((metric_name(key), value) for key, value in metrics.items())
            if step > self._newest.get(key, -1)
        ]
        with self._lock:
            self._points += points

    def unsent(self) -> list[Point]:
        """The points that the server has not received yet, oldest first."""
        with self._lock:
            return list(self._points)

    def flush(self) -> None:
        """Returns when all points logged before the call are on the server or, if it does not
        answer within 2 s, in the outbox: a checkpoint may then count. Raises StoreError."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        last = self.unsent()[-1:]
        while last and last[0] in self.unsent():
            if time.monotonic() > deadline:
                self._store()
                return
            self._wake.set()
            time.sleep(0.05)

    def close(self) -> int:
        """Sends what is left, for at most 15 s (3 s if the server is unreachable), and stores the
        rest in the outbox; -> the number of points stored.

        Raises StoreError if they can be neither sent nor stored.
        """
        self._is_closing = True
        self._wake.set()
        self._thread.join(JOIN_LIMIT_S)
        if left := self.unsent():
            self._store()
        return len(left)

    def _send_regularly(self) -> None:
        stored_at = time.monotonic()
        deadline: float | None = None
        failure: list[int | None] = []  # the status that was logged: once, not every second
        while True:
            self._wake.wait(FLUSH_EVERY_S)
            self._wake.clear()
            if self._is_closing and deadline is None:
                limit_s = UNREACHABLE_CLOSE_LIMIT_S if failure else CLOSE_LIMIT_S
                deadline = time.monotonic() + limit_s
            try:
                with self._sending:
                    self._send()
                stored_at = time.monotonic()
                if failure:
                    logger.warning("MLflow accepts metrics again")
                    failure = []
            except (MlflowException, OSError) as error:
                if failure != (status := [denied_status(error)]):
                    message = describe_error(self._run.uri, error)
                    logger.warning("metrics wait until MLflow accepts them: %s", message)
                    failure = status
                if time.monotonic() - stored_at > STORE_EVERY_S:
                    try:
                        self._store()
                    except StoreError as store_error:
                        logger.warning("metrics are in memory only: %s", store_error)
                    stored_at = time.monotonic()
                time.sleep(FLUSH_EVERY_S)
            if deadline is not None and (not self.unsent() or time.monotonic() > deadline):
                return

    def _send(self) -> None:
        """Sends the queue in batches, each of which leaves the queue once it was sent."""
        while batch := self.unsent()[:MAX_BATCH_METRICS]:
            set_credentials(self._run.uri)  # the server may have been started again
            _send_points(self._client, self._run, batch, self._logged)
            with self._lock:
                del self._points[: len(batch)]
                self._num_stored = max(0, self._num_stored - len(batch))
        if self._stored_urls:
            urls, self._stored_urls = self._stored_urls, []
            try:
                self._outbox.delete(urls)
            except StoreError as error:
                logger.warning("metrics that were sent stay in the outbox: %s", error)

    def _store(self) -> None:
        """Writes points that are neither sent nor stored to the outbox. Raises StoreError."""
        with self._sending:
            points = self.unsent()[self._num_stored :]
            if points:
                self._stored_urls.append(self._outbox.add_points(self._name, points))
                self._num_stored += len(points)


def send_outbox_points(run: RunRef, outbox: Outbox) -> int:
    """Sends every writer's points from the outbox, in order; -> their number.

    Raises ServiceError, StoreError.
    """
    count = 0
    logged: dict[str, int] = {}
    with connect(run.uri) as client:
        for url, points in outbox.points().items():
            _send_points(client, run, points, logged)
            outbox.delete([url])
            count += len(points)
    return count


def _newest_steps(points: Sequence[Point]) -> dict[str, int]:
    """The last step of each key."""
    newest: dict[str, int] = {}
    for key, _, _, step in points:
        newest[key] = max(step, newest.get(key, -1))
    return newest


def _send_points(
    client: MlflowClient, run: RunRef, points: Sequence[Point], logged: dict[str, int]
) -> None:
    """Sends points, without those of steps that the server has. logged: the last step of each key
    on the server, read if missing and updated. Raises MlflowException, OSError."""
    newest = _newest_steps(points)
    for key in newest.keys() - logged.keys():
        history = client.get_metric_history(run.run_id, key)
        logged[key] = max((point.step for point in history), default=-1)
    metrics = [
        make_metric(key, value, at, step) for key, value, at, step in points if step > logged[key]
    ]
    client.log_batch(run.run_id, metrics=metrics)
    for key, step in newest.items():
        logged[key] = max(step, logged[key])
