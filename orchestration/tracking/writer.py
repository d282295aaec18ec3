"""Metric points, sent beside training."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestration.tracking.runs import RunRef

logger = logging.getLogger(__name__)

MAX_BATCH_METRICS = 1000  # the server's limit for one log_batch
FLUSH_EVERY_S = 1.0
CLOSE_LIMIT_S = 60.0
RETRY_PAUSE_S = 2.0

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


def last_step(run: RunRef, key: str) -> int:
    """The last step at which `key` was logged, -1 for none."""
    history = MlflowClient(tracking_uri=run.uri).get_metric_history(run.run_id, key)
    return max((point.step for point in history), default=-1)


class MetricWriter:
    """Sends metric points from a thread, so that no step waits for the server (rank 0 only).

    Points are batched for a second, and kept and retried in order while the server is away. A
    point carries its own timestamp, so the server stores a retried one once. What is not sent yet
    goes into each checkpoint (`unsent`) and comes back with it; steps that an earlier attempt
    already logged are dropped: they are the same numbers, computed again.
    """

    def __init__(self, run: RunRef, unsent: Iterable[Point] = ()) -> None:
        self._run = run
        self._client = MlflowClient(tracking_uri=run.uri)
        self._points = [Metric(*point) for point in unsent]
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one value a key at `step`; returns at once."""
        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        with self._lock:
            self._points += points

    def unsent(self) -> list[Point]:
        """The points that the server has not taken yet, oldest first."""
        with self._lock:
            return [(p.key, p.value, p.timestamp, p.step) for p in self._points]

    def close(self) -> int:
        """Sends what is left, for at most 60 s; -> how many points could not be sent."""
        self._closing.set()
        self._thread.join(CLOSE_LIMIT_S)
        return len(self.unsent())

    def _send_all(self) -> None:
        logged: dict[str, int] = {}  # the last step of each key before this attempt
        deadline: float | None = None
        while True:
            is_closing = self._closing.wait(FLUSH_EVERY_S)
            if is_closing and deadline is None:
                deadline = time.monotonic() + CLOSE_LIMIT_S - RETRY_PAUSE_S
            try:
                self._send(logged)
            except (MlflowException, OSError) as error:
                logger.warning("MLflow is away (%s); metrics wait", type(error).__name__)
                time.sleep(RETRY_PAUSE_S)
            if deadline is not None and (not self.unsent() or time.monotonic() > deadline):
                return

    def _send(self, logged: dict[str, int]) -> None:
        """Sends all that is queued, in batches; a batch leaves the queue when it was taken."""
        while True:
            with self._lock:
                batch = self._points[:MAX_BATCH_METRICS]
            if not batch:
                return
            for key in {point.key for point in batch} - logged.keys():
                logged[key] = last_step(self._run, key)
            fresh = [point for point in batch if point.step > logged[point.key]]
            if fresh:
                self._client.log_batch(self._run.run_id, metrics=fresh)
            with self._lock:
                del self._points[: len(batch)]
