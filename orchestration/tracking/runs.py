"""One MLflow run per training run: how it is opened, told apart and closed.

The driver owns the run: it opens it, sets its final status and logs what it has; rank 0 sends
metrics (writer.py, as the driver does of its own) and touches nothing else of the run.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset as InputDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestration.errors import ServiceError
from orchestration.run.metrics import top1_of
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.table_view import VIEW_TAG, saved_view

FINISHED = "FINISHED"
MAX_BATCH_PARAMS = 100  # the server's limit for one log_batch
SWEEP_TAG = "rayception.sweep"
TRIAL_TAG = "rayception.trial"
MODEL_TAG = "rayception.model"  # models:/ URI of the final one
STORAGE_TAG = "rayception.storage"
NOTE_TAG = "mlflow.note.content"  # the description, in Markdown
# Without its kind, the UI opens an experiment as a generative-AI project, without charts.
KIND_TAG = "mlflow.experimentKind"
EXPERIMENT_TAGS = {KIND_TAG: "custom_model_development", VIEW_TAG: saved_view()}
# MLflow's name of where data lie and of the field that says it, by the URL's scheme.
SOURCES = {"s3": ("s3", "uri"), "file": ("local", "uri")}
HTTP_SOURCE = ("http", "url")
# MLflow's words for HTTP's numbers.
DENIED = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turns what goes wrong between us and the server, in the block, into ServiceError."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise ServiceError(refusal(uri, error)) from error


def open_run(
    uri: str, *, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> RunRef:
    """A new run in `experiment` (made where missing), with its params and tags.

    Raises ServiceError where the server cannot be reached or refuses.
    """
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        experiment_id = _experiment_id(client, experiment)
        run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
        entries = [Param(key, str(value)) for key, value in params.items()]
        for i in range(0, len(entries), MAX_BATCH_PARAMS):
            client.log_batch(run.info.run_id, params=entries[i : i + MAX_BATCH_PARAMS])
    return RunRef(uri=uri, experiment_id=str(experiment_id), run_id=run.info.run_id)


def _experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment of this name, made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, tags=EXPERIMENT_TAGS))
    # One that others made, or an earlier version. Its kind may be what a person chose.
    if KIND_TAG not in found.tags:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, EXPERIMENT_TAGS[KIND_TAG])
    if found.tags.get(VIEW_TAG) != EXPERIMENT_TAGS[VIEW_TAG]:
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, EXPERIMENT_TAGS[VIEW_TAG])
    return str(found.experiment_id)


def open_parent(uri: str, *, experiment: str, name: str, digest: str) -> RunRef:
    """The run of the sweep with this digest: the one that is there, or a new one.

    Raises ServiceError.
    """
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        experiment_id = _experiment_id(client, experiment)
        found = client.search_runs(
            [experiment_id], f"tags.`{SWEEP_TAG}` = '{digest}'", max_results=1
        )
        run = (
            found[0]
            if found
            else client.create_run(experiment_id, run_name=name, tags={SWEEP_TAG: digest})
        )
    return RunRef(uri=uri, experiment_id=experiment_id, run_id=run.info.run_id)


def child_tags(parent: RunRef, key: str) -> dict[str, str]:
    """Tags of a run that belongs to a sweep, under the name that it has there."""
    return {"mlflow.parentRunId": parent.run_id, TRIAL_TAG: key}


def finished_children(parent: RunRef) -> dict[str, float]:
    """Top-1 in percent of a sweep's finished runs, by their names. Raises ServiceError."""
    client = MlflowClient(tracking_uri=parent.uri)
    children: dict[str, float] = {}
    token = None
    with answering(parent.uri):
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


def reopen_run(run: RunRef, tags: Mapping[str, str]) -> None:
    """The run is running again, with these tags. Raises ServiceError, also where it is gone."""
    client = MlflowClient(tracking_uri=run.uri)
    with answering(run.uri):
        client.update_run(run.run_id, status="RUNNING")
        if tags:
            tag_run(run, tags)


def run_status(run: RunRef) -> str:
    """RUNNING, FINISHED, FAILED or KILLED. Raises ServiceError."""
    with answering(run.uri):
        return str(MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status)


def close_run(run: RunRef, status: str, tags: Mapping[str, str] | None = None) -> None:
    """Sets the final status: FINISHED, FAILED or KILLED. Raises ServiceError."""
    client = MlflowClient(tracking_uri=run.uri)
    with answering(run.uri):
        if tags:
            tag_run(run, tags)
        client.set_terminated(run.run_id, status=status)


def status_of(error: BaseException) -> str:
    """What a run has become that this ended."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def log_text(run: RunRef, text: str, path: str) -> None:
    """An artifact of text under `path` of the run. Raises ServiceError."""
    log_file(run, path, text.encode())


def log_file(run: RunRef, path: str, content: bytes) -> None:
    """An artifact under `path` of the run. Raises ServiceError."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as here:
        file = Path(here) / name
        file.write_bytes(content)
        with answering(run.uri):
            MlflowClient(tracking_uri=run.uri).log_artifact(run.run_id, str(file), folder or None)


def send_file(run: RunRef, outbox: Outbox, path: str, content: bytes) -> None:
    """An artifact under `path`; where MLflow is away, into the outbox. Raises StoreError."""
    try:
        log_file(run, path, content)
    except ServiceError:
        outbox.keep_file(path, content)


def tag_run(run: RunRef, tags: Mapping[str, str]) -> None:
    """Sets tags. Raises ServiceError."""
    with answering(run.uri):
        MlflowClient(tracking_uri=run.uri).log_batch(
            run.run_id, tags=[RunTag(k, v) for k, v in tags.items()]
        )


def tag_of(run: RunRef, name: str) -> str | None:
    """The value of a run's tag. Raises ServiceError."""
    with answering(run.uri):
        tags = MlflowClient(tracking_uri=run.uri).get_run(run.run_id).data.tags
    found: str | None = tags.get(name)
    return found


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
    """Says what the run reads. Raises ServiceError."""
    inputs = []
    for one in datasets:
        kind, field = SOURCES.get(one.source.partition("://")[0], HTTP_SOURCE)
        dataset = InputDataset(
            name=one.name,
            digest=one.digest,
            source_type=kind,
            source=json.dumps({field: one.source}),
            profile=json.dumps(dict(one.profile)),
        )
        inputs.append(DatasetInput(dataset, tags=[InputTag("mlflow.data.context", one.context)]))
    with answering(run.uri):
        MlflowClient(tracking_uri=run.uri).log_inputs(run.run_id, datasets=inputs)


def histories(run: RunRef, keys: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each key that was logged, by step. Raises ServiceError."""
    client = MlflowClient(tracking_uri=run.uri)
    with answering(run.uri):
        found = {key: client.get_metric_history(run.run_id, key) for key in keys}
    return {
        key: sorted((point.step, point.value) for point in points)
        for key, points in found.items()
        if points
    }


def log_metrics(run: RunRef, metrics: Mapping[str, float], *, step: int) -> None:
    """Metrics at one step, now. Raises ServiceError."""
    now_ms = int(time.time() * 1000)
    points = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
    with answering(run.uri):
        MlflowClient(tracking_uri=run.uri).log_batch(run.run_id, metrics=points)


def refusal(uri: str, error: Exception) -> str:
    """What a person is told of a failed call: the server's answer, and what to do about it. What
    the environment holds of a password is no part of it."""
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    what = f"tracking.uri: got {uri}; the MLflow server"
    status = refused_with(error)
    if status == 401 and "MLFLOW_TRACKING_USERNAME" not in os.environ:
        return (
            f"{what} asks who calls (401) and no user is named. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment."
        )
    if status == 401:
        return (
            f"{what} does not know the user or the password that it was given (401). Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those that it knows."
        )
    if status == 403 and "Invalid Host header" in str(error):
        return (
            f"{what} does not answer under this name (403). Start it with --allowed-hosts that "
            "has this name, or use a name that it allows."
        )
    if status == 403:
        return (
            f"{what} does not let this user do that (403: {first}). Ask for the permission there, "
            "or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to another user's."
        )
    return (
        f"{what} refused or did not answer ({type(error).__name__}: {first}). Check that it runs "
        "and that this machine reaches it."
    )


def refused_with(error: Exception) -> int | None:
    """401 or 403, where the server said so; artifacts come back as an HTTP error of their own."""
    code = getattr(error, "error_code", None)
    if code in DENIED:
        return DENIED[code]
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if status in DENIED.values() else None
