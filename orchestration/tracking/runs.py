"""The MLflow runs of training runs and sweeps: opened, resumed, closed; their tags and artifacts.

The driver owns a run: it opens it and sets its final status. Rank 0 only sends metrics (writer.py).
"""

import contextlib
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset as InputDataset
from mlflow.entities import DatasetInput, InputTag, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils import get_results_from_paginated_fn

from orchestration.errors import ServiceError
from orchestration.run.metrics import top1_of
from orchestration.tracking.credentials import set_credentials
from orchestration.tracking.mlflow_errors import describe_deleted_experiment, describe_error
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.table_view import VIEW_TAG, saved_view

FINISHED = "FINISHED"
PAGE = 1000  # runs or experiments of one request
MAX_TAG_CHARS = 5000  # of older servers; a newer one on PostgreSQL refuses more than 8,000
SWEEP_TAG = "rayception.sweep"
TRIAL_TAG = "rayception.trial"
MODEL_TAG = "rayception.model"  # models:/ URI of the final model
STORAGE_TAG = "rayception.storage"
NOTE_TAG = "mlflow.note.content"  # the description, in Markdown
# An experiment without a kind opens as a generative-AI project, without charts.
KIND_TAG = "mlflow.experimentKind"
EXPERIMENT_TAGS = {KIND_TAG: "custom_model_development", VIEW_TAG: saved_view()}
# (MLflow's source type, its field for the URL), by the URL's scheme.
SOURCES = {"s3": ("s3", "uri"), "file": ("local", "uri")}
HTTP_SOURCE = ("http", "url")


@contextlib.contextmanager
def connect(uri: str) -> Iterator[MlflowClient]:
    """A client of the server; errors of its calls in the block become ServiceError."""
    set_credentials(uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        yield client
    except (MlflowException, OSError) as error:
        raise ServiceError(describe_error(uri, error)) from error


def open_run(
    uri: str, *, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> RunRef:
    """A new run in `experiment`, which is created if missing. Raises ServiceError."""
    with connect(uri) as client:
        experiment_id = _experiment_id(client, uri, experiment)
        cut_tags = {key: value[:MAX_TAG_CHARS] for key, value in tags.items()}
        run_id = client.create_run(experiment_id, run_name=name, tags=cut_tags).info.run_id
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return RunRef(uri=uri, experiment_id=experiment_id, run_id=run_id)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment of this name, created if missing. Raises ServiceError if it is deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, tags=EXPERIMENT_TAGS))
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise ServiceError(describe_deleted_experiment(uri, name, experiment.experiment_id))
    # Created by others or an earlier version. A kind may be somebody's choice: it is left as it is.
    if KIND_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, EXPERIMENT_TAGS[KIND_TAG])
    if experiment.tags.get(VIEW_TAG) != EXPERIMENT_TAGS[VIEW_TAG]:
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, EXPERIMENT_TAGS[VIEW_TAG])
    return str(experiment.experiment_id)


def open_parent(uri: str, *, experiment: str, name: str, digest: str) -> RunRef:
    """The run of the sweep with this digest, created if missing. Raises ServiceError."""
    with connect(uri) as client:
        experiment_id = _experiment_id(client, uri, experiment)
        query = f"tags.`{SWEEP_TAG}` = '{digest}'"
        runs = client.search_runs([experiment_id], query, max_results=1)
        if not runs:
            runs = [client.create_run(experiment_id, run_name=name, tags={SWEEP_TAG: digest})]
    return RunRef(uri=uri, experiment_id=experiment_id, run_id=runs[0].info.run_id)


def child_tags(parent: RunRef, key: str) -> dict[str, str]:
    """Tags of a sweep's run. key: its name in the sweep."""
    return {"mlflow.parentRunId": parent.run_id, TRIAL_TAG: key}


def finished_children(parent: RunRef) -> dict[str, float]:
    """Top-1 in percent of a sweep's finished runs, by their names in it. Raises ServiceError."""
    query = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FINISHED'"
    with connect(parent.uri) as client:
        runs = search_runs(client, [parent.experiment_id], query)
    children: dict[str, float] = {}
    for run in runs:
        top1 = top1_of(run.data.metrics)
        if top1 is not None and TRIAL_TAG in run.data.tags:
            children[run.data.tags[TRIAL_TAG]] = top1
    return children


def search_runs(
    client: MlflowClient, experiment_ids: Sequence[str], query: str, limit: int | None = None
) -> list[Any]:
    """The newest `limit` runs that match, newest first. Raises MlflowException, OSError."""

    def fetch(count: int, token: str | None) -> Any:
        order = ["attributes.start_time DESC"]
        return client.search_runs(
            list(experiment_ids), query, max_results=count, order_by=order, page_token=token
        )

    runs: list[Any] = get_results_from_paginated_fn(fetch, PAGE, limit) if experiment_ids else []
    return runs


def reopen_run(run: RunRef, tags: Mapping[str, str]) -> None:
    """Sets the status RUNNING, and the tags. Raises ServiceError, also if there is no such run."""
    with connect(run.uri) as client:
        client.update_run(run.run_id, status="RUNNING")
    set_tags(run, tags)


def run_status(run: RunRef) -> str:
    """RUNNING, FINISHED, FAILED or KILLED. Raises ServiceError."""
    with connect(run.uri) as client:
        return str(client.get_run(run.run_id).info.status)


def close_run(run: RunRef, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Sets the final status: FINISHED, FAILED or KILLED. Raises ServiceError."""
    set_tags(run, tags or {})
    with connect(run.uri) as client:
        client.set_terminated(run.run_id, status=status)


def status_of(error: BaseException) -> str:
    """The status of a run that this exception ended."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def log_file(run: RunRef, path: str, content: bytes) -> None:
    """Logs an artifact. Raises ServiceError."""
    directory, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / name
        file.write_bytes(content)
        with connect(run.uri) as client:
            client.log_artifact(run.run_id, str(file), directory or None)


def send_file(run: RunRef, outbox: Outbox, path: str, content: bytes) -> None:
    """Logs an artifact, to the outbox if MLflow does not accept it. Raises StoreError."""
    try:
        log_file(run, path, content)
    except ServiceError:
        outbox.add_file(path, content)


def set_tags(run: RunRef, tags: Mapping[str, str]) -> None:
    """Raises ServiceError."""
    with connect(run.uri) as client:
        cut_tags = [RunTag(key, value[:MAX_TAG_CHARS]) for key, value in tags.items()]
        client.log_batch(run.run_id, tags=cut_tags)


def get_tag(run: RunRef, name: str) -> str | None:
    """The value of a run's tag. Raises ServiceError."""
    with connect(run.uri) as client:
        tags: dict[str, str] = client.get_run(run.run_id).data.tags
    return tags.get(name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A split as MLflow shows it. digest: at most 36 characters; context: training or validation;
    profile: counts."""

    name: str
    digest: str
    source: str
    context: str
    profile: Mapping[str, int]


def log_datasets(run: RunRef, datasets: Sequence[Dataset]) -> None:
    """Logs the run's inputs. Raises ServiceError."""
    inputs = []
    for dataset in datasets:
        kind, field = SOURCES.get(dataset.source.partition("://")[0], HTTP_SOURCE)
        entity = InputDataset(
            name=dataset.name,
            digest=dataset.digest,
            source_type=kind,
            source=json.dumps({field: dataset.source}),
            profile=json.dumps(dict(dataset.profile)),
        )
        inputs.append(DatasetInput(entity, tags=[InputTag("mlflow.data.context", dataset.context)]))
    with connect(run.uri) as client:
        client.log_inputs(run.run_id, datasets=inputs)


def metric_histories(run: RunRef, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each key that was logged, by step. Raises ServiceError."""
    with connect(run.uri) as client:
        points = {key: client.get_metric_history(run.run_id, key) for key in keys}
    return {
        key: sorted((point.step, point.value) for point in history)
        for key, history in points.items()
        if history
    }


def log_metrics(run: RunRef, metrics: Mapping[str, float], *, step: int) -> None:
    """Logs metrics of one step, with the current time. Raises ServiceError."""
    now_ms = int(time.time() * 1000)
    points = [make_metric(key, value, now_ms, step) for key, value in metrics.items()]
    with connect(run.uri) as client:
        client.log_batch(run.run_id, metrics=points)


def metric_name(key: str) -> str:
    """The key as every version of MLflow accepts it: one refused name blocks its whole batch."""
    return re.sub(r"[^\w./ -]", "_", key)


def make_metric(key: str, value: float, at_ms: int, step: int) -> Metric:
    """A point as MLflow stores it. It marks NaN as such, but turns infinity into 1.8e308."""
    value = float(value)
    return Metric(metric_name(key), math.nan if math.isinf(value) else value, at_ms, step)
