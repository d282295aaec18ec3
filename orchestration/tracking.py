"""MLflow: one run per training run. The only importer of mlflow.

The driver owns the run: it opens it, sets its final status and logs the model. Rank 0 sends
metrics by `MetricWriter` and touches nothing else of the run. Every call is bounded: MLflow's own
default would retry for minutes where the server is away.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
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
from orchestration.metrics import top1_of

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

MAX_BATCH_METRICS = 1000  # the server's limit for one log_batch
MAX_BATCH_PARAMS = 100
FLUSH_EVERY_S = 1.0
CLOSE_LIMIT_S = 60.0
RETRY_PAUSE_S = 2.0
SWEEP_TAG = "rayception.sweep"
TRIAL_TAG = "rayception.trial"

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRef:
    """A run on a tracking server: all that a worker needs to know of MLflow."""

    uri: str
    experiment_id: str
    run_id: str

    @property
    def page(self) -> str:
        """The path of the run's charts in the UI, to append to the server's URL. The query shows
        the menu of model training instead of the generative one."""
        path = f"/#/experiments/{self.experiment_id}/runs/{self.run_id}/model-metrics"
        return f"{path}?workflowType=machine_learning"


def open_run(
    uri: str, *, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> RunRef:
    """A new run in `experiment` (made where missing), with its params and tags.

    Raises ServiceError where the server cannot be reached or refuses.
    """
    client = MlflowClient(tracking_uri=uri)
    try:
        experiment_id = _experiment_id(client, experiment)
        run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        entries = [Param(key, str(value)) for key, value in params.items()]
        for i in range(0, len(entries), MAX_BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=entries[i : i + MAX_BATCH_PARAMS])
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(uri, error)) from error
    return RunRef(uri=uri, experiment_id=str(experiment_id), run_id=run.info.run_id)


def _experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment of this name, made where there is none."""
    found = client.get_experiment_by_name(name)
    # Without this tag the UI opens the experiment as a generative-AI project, without charts.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(found.experiment_id if found else client.create_experiment(name, tags=kind))


def open_parent(uri: str, *, experiment: str, name: str, digest: str) -> RunRef:
    """The run of the sweep with this digest: the one that is there, or a new one.

    Raises ServiceError.
    """
    client = MlflowClient(tracking_uri=uri)
    try:
        experiment_id = _experiment_id(client, experiment)
        found = client.search_runs(
            [experiment_id], f"tags.`{SWEEP_TAG}` = '{digest}'", max_results=1
        )
        run = (
            found[0]
            if found
            else client.create_run(experiment_id, run_name=name, tags={SWEEP_TAG: digest})
        )
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(uri, error)) from error
    return RunRef(uri=uri, experiment_id=experiment_id, run_id=run.info.run_id)


def child_tags(parent: RunRef, key: str) -> dict[str, str]:
    """Tags of a run that belongs to a sweep, under the name that it has there."""
    return {"mlflow.parentRunId": parent.run_id, TRIAL_TAG: key}


def finished_children(parent: RunRef) -> dict[str, float]:
    """Top-1 in percent of a sweep's finished runs, by their names. Raises ServiceError."""
    client = MlflowClient(tracking_uri=parent.uri)
    children: dict[str, float] = {}
    token = None
    try:
        while True:
            page = client.search_runs(
                [parent.experiment_id],
                f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FINISHED'",
                page_token=token,
            )
            for run in page:
                top1 = top1_of(run.data.metrics)
                if top1 is not None and TRIAL_TAG in run.data.tags:
                    children[run.data.tags[TRIAL_TAG]] = top1
            token = page.token
            if not token:
                return children
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(parent.uri, error)) from error


def reopen_run(run: RunRef, tags: Mapping[str, str]) -> None:
    """The run is running again, with these tags. Raises ServiceError, also where it is gone."""
    client = MlflowClient(tracking_uri=run.uri)
    try:
        client.update_run(run.run_id, status="RUNNING")
        if tags:
            client.log_batch(run.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error


def run_status(run: RunRef) -> str:
    """RUNNING, FINISHED, FAILED or KILLED. Raises ServiceError."""
    try:
        return str(MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status)
    except (MlflowException, OSError) as error:
        raise ServiceError(_refusal(run.uri, error)) from error


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


def log_metrics(run: RunRef, metrics: Mapping[str, float], *, step: int) -> None:
    """Metrics at one step, now. Raises ServiceError."""
    now_ms = int(time.time() * 1000)
    points = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
    try:
        MlflowClient(tracking_uri=run.uri).log_batch(run.run_id, metrics=points)
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
