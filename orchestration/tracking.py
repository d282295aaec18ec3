"""MLflow: one run per training run. The only importer of mlflow.

The driver owns the run: it opens it, sets its final status and logs the model. Rank 0 sends
metrics by `MetricWriter` and touches nothing else of the run. Every call is bounded: MLflow's own
default would retry for minutes where the server is away.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# Read by mlflow at its import. One retry answers a blip; an outage is the writer's to wait out.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestration.errors import ServiceError

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

MAX_BATCH_METRICS = 1000  # the server's limit for one log_batch
MAX_BATCH_PARAMS = 100
FLUSH_EVERY_S = 1.0
CLOSE_LIMIT_S = 60.0
RETRY_PAUSE_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef:
    """A run on a tracking server: all that a worker needs to know of MLflow."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def page(self) -> str:
        """The path of the run's charts in the UI, to append to the server's URL."""
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}/model-metrics"


def open_run(
    uri: str, *, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> RunRef:
    """A new run in `experiment` (made where missing), with its params and tags.

    Raises ServiceError where the server cannot be reached or refuses.
    """
    client = MlflowClient(tracking_uri=uri)
    try:
        found = client.get_experiment_by_name(experiment)
        # Without this tag the UI opens the experiment as a generative-AI project, without charts.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        experiment_id = (
            found.experiment_id if found else client.create_experiment(experiment, tags=kind)
        )
        run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        entries = [Param(key, str(value)) for key, value in params.items()]
        for i in range(0, len(entries), MAX_BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=entries[i : i + MAX_BATCH_PARAMS])
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(uri, error)) from error
    return RunRef(uri=uri, experiment_id=str(experiment_id), run_id=run.info.run_id)


def close_run(run: RunRef, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Sets the final status: FINISHED, FAILED or KILLED. Raises ServiceError."""
    client = MlflowClient(tracking_uri=run.uri)
    try:
        if tags:
            client.log_batch(run.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        client.set_terminated(run.run_id, status=status)
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error


def log_text(run: RunRef, text: str, path: str) -> None:
    """An artifact of text under `path` of the run. Raises ServiceError."""
    try:
        MlflowClient(tracking_uri=run.uri).log_text(run.run_id, text, path)
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error


def log_model(run: RunRef, model: "nn.Module", example: "Tensor") -> str:
    """The model in torch.export's format with signature and input example; -> its models:/ URI.

    example: float32 (N, 3, H, W) with N >= 2, the network's own input (-1..1). No pickle is
    written, and loading needs no rayception checkout. Raises ServiceError.
    """
    import torch
    from mlflow.models import infer_signature

    model.eval()
    with torch.inference_mode():
        logits = model(example).numpy()
    inputs = example.numpy()
    mlflow.set_tracking_uri(run.uri)
    try:
        with mlflow.start_run(run_id=run.run_id):
            info = mlflow.pytorch.log_model(
                model,
                name="model",
                signature=infer_signature(inputs, logits),
                input_example=inputs,
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
            )
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error
    return str(info.model_uri)


def last_step(run: RunRef, key: str) -> int:
    """The last step at which `key` was logged, -1 for none."""
    history = MlflowClient(tracking_uri=run.uri).get_metric_history(run.run_id, key)
    return max((point.step for point in history), default=-1)


class MetricWriter:
    """Sends metric points from a thread, so that no step waits for the server (rank 0 only).

    Points are batched for a second, kept and retried while the server is away, in order. A point
    carries its own timestamp, so the server stores a retried one once. Steps that an earlier
    attempt already logged are dropped: they are the same numbers, computed again.
    """

    def __init__(self, run: RunRef) -> None:
        self._run = run
        self._client = MlflowClient(tracking_uri=run.uri)
        self._points: queue.SimpleQueue[Metric | None] = queue.SimpleQueue()
        self._unsent: list[Metric] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one value a key at `step`; returns at once."""
        now_ms = int(time.time() * 1000)
        for key, value in metrics.items():
            self._points.put(Metric(key, float(value), now_ms, step))

    def close(self) -> int:
        """Sends what is left, for at most 60 s; -> how many points could not be sent."""
        self._closing.set()
        self._points.put(None)
        self._thread.join(CLOSE_LIMIT_S)
        return len(self._unsent)

    def _send_all(self) -> None:
        logged: dict[str, int] = {}
        deadline = float("inf")
        is_open = True
        while is_open or (self._unsent and time.monotonic() < deadline):
            is_open = is_open and self._collect()
            if not is_open and deadline == float("inf"):
                deadline = time.monotonic() + CLOSE_LIMIT_S - RETRY_PAUSE_S
            try:
                for key in {point.key for point in self._unsent} - logged.keys():
                    logged[key] = last_step(self._run, key)
                self._unsent = [p for p in self._unsent if p.step > logged[p.key]]
                while self._unsent:
                    batch = self._unsent[:MAX_BATCH_METRICS]
                    self._client.log_batch(self._run.run_id, metrics=batch)
                    del self._unsent[: len(batch)]
            except (MlflowException, OSError) as error:
                logger.warning(
                    "MLflow is away (%s); %d points wait", type(error).__name__, len(self._unsent)
                )
                self._closing.wait(RETRY_PAUSE_S) if is_open else time.sleep(RETRY_PAUSE_S)

    def _collect(self) -> bool:
        """Moves queued points to `_unsent` for a second; False once the writer is closed."""
        until = time.monotonic() + FLUSH_EVERY_S
        while (left := until - time.monotonic()) > 0:
            try:
                point = self._points.get(timeout=left)
            except queue.Empty:
                break
            if point is None:
                return False
            self._unsent.append(point)
        return True


def fetch_metrics(run: RunRef) -> dict[str, float]:
    """The latest value of each metric. Raises ServiceError."""
    try:
        found = MlflowClient(tracking_uri=run.uri).get_run(run.run_id)
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error
    return dict(found.data.metrics)


def find_run(uri: str, run_id: str) -> RunRef:
    """The run of this id. Raises ServiceError where the server has none."""
    try:
        found = MlflowClient(tracking_uri=uri).get_run(run_id)
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(uri, error)) from error
    return RunRef(uri=uri, experiment_id=found.info.experiment_id, run_id=run_id)


def _refusal(uri: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return (
        f"tracking.uri: got {uri}; the MLflow server refused or did not answer "
        f"({type(error).__name__}: {first}). Check that it runs and that this machine reaches it."
    )
