"""A server's runs for display: searched, found by name, compared."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils import get_results_from_paginated_fn

from orchestration.errors import JobError
from orchestration.job.rules import redact_url
from orchestration.run.metrics import top1_of
from orchestration.run.timeline import ATTEMPTS_TAG
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import PAGE, STORAGE_TAG, SWEEP_TAG, connect, search_runs
from orchestration.tracking.table_view import VIEW_TAG, table_page

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
TOP1_KEYS = ("val_ema/top1", "val/top1")
RUN_ID = re.compile(r"[0-9a-f]{8,32}")
RECENT = 200  # newest runs among which a mistyped name is looked up
GROUPS = ("val_ema/", "val/", "train/")  # the order of metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """A run in one line.

    started_s: Unix time. duration_s: up to now if it has not ended. top1: percent, the last value.
    attempts: None if the run has no such tag. children: of a sweep's parent, None for other runs.
    silent_s: seconds since a running training run logged a metric, None for any other run.
    """

    name: str
    run_id: str
    experiment: str
    status: str
    started_s: float
    duration_s: float
    top1: float | None
    epoch: float | None
    step: int | None
    images_per_second: float | None
    attempts: int | None
    children: int | None
    silent_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs side by side; each list has one entry a run, None if the run has no such value.

    params: those that differ. metrics: last values; `KEY (best)` is the highest top-1.
    """

    runs: list[RunRow]
    params: dict[str, list[str | None]]
    metrics: dict[str, list[float | None]]


def search(
    uri: str,
    *,
    experiment: str | None = None,
    statuses: Sequence[str] = (),
    filter_string: str = "",
    limit: int = 20,
) -> list[RunRow]:
    """At most `limit` runs, newest first. filter_string: in MLflow's syntax.

    Raises JobError for an unknown experiment or a filter that MLflow rejects; ServiceError.
    """
    with connect(uri) as client:
        names = _experiments(client)
        ids = list(names) if experiment is None else [_experiment_id(names, experiment)]
        # MLflow's filters have neither "or" nor a list of statuses: the others are excluded.
        others = [status for status in STATUSES if status not in statuses] if statuses else []
        clauses = [f"attributes.status != '{status}'" for status in others]
        if filter_string:
            clauses.append(filter_string)
        try:
            runs = search_runs(client, ids, " and ".join(clauses), limit)
        except MlflowException as error:
            if filter_string and error.error_code == "INVALID_PARAMETER_VALUE":
                raise JobError(_describe_rejected(filter_string, error)) from error
            raise
        return [_row(client, run, names) for run in runs]


def find_table(uri: str, name: str) -> str:
    """The page of an experiment's table, with our columns if a run of ours has saved them.
    Raises JobError for an unknown experiment; ServiceError."""
    with connect(uri) as client:
        experiment_id = _experiment_id(_experiments(client), name)
        has_view = VIEW_TAG in client.get_experiment(experiment_id).tags
    return table_page(experiment_id, has_view=has_view)


def find(uri: str, reference: str) -> RunRef:
    """reference: a run's id (at least its first 8 digits), its name, or the URL of its folder in
    storage. Raises JobError unless exactly one run matches; ServiceError."""
    with connect(uri) as client:
        run = _find(client, list(_experiments(client)), reference)
    return RunRef(uri=uri, experiment_id=str(run.info.experiment_id), run_id=run.info.run_id)


def compare(uri: str, references: Sequence[str]) -> Comparison:
    """Raises JobError unless exactly one run matches each reference; ServiceError."""
    with connect(uri) as client:
        names = _experiments(client)
        runs = [_find(client, list(names), reference) for reference in references]
        params = {
            key: values
            for key in dict.fromkeys(key for run in runs for key in run.data.params)
            if len(set(values := [run.data.params.get(key) for run in runs])) > 1
        }
        metrics: dict[str, list[float | None]] = {}
        for key in _metric_keys(runs):
            metrics[key] = [run.data.metrics.get(key) for run in runs]
            if key in TOP1_KEYS:
                metrics[f"{key} (best)"] = [_best(client, run, key) for run in runs]
        rows = [_row(client, run, names) for run in runs]
    return Comparison(runs=rows, params=params, metrics=metrics)


def _experiments(client: MlflowClient) -> dict[str, str]:
    """Names by id of the experiments that this user may read."""
    experiments = get_results_from_paginated_fn(
        lambda count, token: client.search_experiments(max_results=count, page_token=token), PAGE
    )
    return {str(experiment.experiment_id): experiment.name for experiment in experiments}


def _experiment_id(names: dict[str, str], name: str) -> str:
    for experiment_id, known in names.items():
        if known == name:
            return experiment_id
    raise JobError(
        f"--experiment: got {name!r}; the server has {', '.join(sorted(names.values())) or 'none'}."
        " Name one of them, or omit the option."
    )


def _find(client: MlflowClient, experiment_ids: list[str], reference: str) -> Any:
    """The run with this id, name or URL."""
    is_url = "://" in reference
    name = reference.rstrip("/").rpartition("/")[2] if is_url else reference
    by_name = f"attributes.run_name = {_quoted(name)}"
    queries = [by_name]
    if is_url:  # first by the whole URL: two stores may have a folder of the same name
        url = _quoted(reference.rstrip("/"))
        queries.insert(0, f"{by_name} and tags.`{STORAGE_TAG}` = {url}")
    elif RUN_ID.fullmatch(reference):
        queries.insert(0, f"attributes.run_id LIKE '{reference}%'")
    for query in queries:
        runs = search_runs(client, experiment_ids, query, 6)
        if len(runs) == 1:
            return runs[0]
        if runs:
            ids = ", ".join(run.info.run_id for run in runs[:5])
            more = " and more" if len(runs) > 5 else ""
            raise JobError(
                f"RUN: got {redact_url(reference)!r}, which matches several runs ({ids}"
                f"{more}); it must match one. Give the run's id."
            )
    newest = search_runs(client, experiment_ids, "", RECENT)
    similar = get_close_matches(name, [run.info.run_name for run in newest], n=1)
    hint = f"Did you mean {similar[0]}?" if similar else "List the runs with `rayception runs`."
    raise JobError(
        f"RUN: got {redact_url(reference)!r}; it must be the id, the name or the URL of a run "
        f"on this server. {hint}"
    )


def _quoted(text: str) -> str:
    """A string in an MLflow filter, which has no escape characters. Raises JobError."""
    if "'" in text and '"' in text:
        raise JobError(
            f"RUN: got {redact_url(text)!r}; MLflow finds no name or URL with both kinds of "
            "quotes. Give the run's id."
        )
    return f'"{text}"' if "'" in text else f"'{text}'"


def _describe_rejected(filter_string: str, error: MlflowException) -> str:
    reason = " ".join(str(error).removeprefix("INVALID_PARAMETER_VALUE:").split())
    short = reason if len(reason) <= 160 else f"{reason[:160]}..."
    return (
        f"--filter: got {filter_string!r}; it must be in MLflow's syntax ({short.rstrip('.')}). "
        "Example: \"metrics.`val/top1` > 90 and params.optim.name = 'sgd'\"."
    )


def _row(client: MlflowClient, run: Any, names: dict[str, str]) -> RunRow:
    metrics, tags = run.data.metrics, run.data.tags
    experiment_id = str(run.info.experiment_id)
    # The entity hides the steps and times of the last values; its protobuf message has them.
    last_points = run.data.to_proto().metrics
    steps = [point.step for point in last_points if point.key.startswith("train/")]
    started_s = (run.info.start_time or 0) / 1000
    last_logged_s = max((point.timestamp / 1000 for point in last_points), default=started_s)
    is_over = str(run.info.status) != "RUNNING"  # a resumed run still has its last end_time
    ended_s = run.info.end_time / 1000 if is_over and run.info.end_time else time.time()
    may_be_silent = not is_over and STORAGE_TAG in tags
    attempts = tags.get(ATTEMPTS_TAG, "")
    children = None
    if SWEEP_TAG in tags:
        query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        children = len(search_runs(client, [experiment_id], query, 10 * PAGE))
    return RunRow(
        name=run.info.run_name or "",
        run_id=run.info.run_id,
        experiment=names.get(experiment_id, experiment_id),
        status=str(run.info.status),
        started_s=started_s,
        duration_s=max(0.0, ended_s - started_s),
        top1=top1_of(metrics),
        epoch=metrics.get("train/epoch"),
        step=max(steps, default=None),
        images_per_second=metrics.get("train/images_per_second"),
        attempts=int(attempts) if attempts.isdigit() else None,
        children=children,
        silent_s=max(0.0, time.time() - last_logged_s) if may_be_silent else None,
    )


def _metric_keys(runs: Sequence[Any]) -> list[str]:
    """The metrics of all runs, in the order of GROUPS, then the others."""
    keys = sorted({key for run in runs for key in run.data.metrics})
    rank = {group: number for number, group in enumerate(GROUPS)}
    return sorted(keys, key=lambda key: rank.get(f"{key.partition('/')[0]}/", len(rank)))


def _best(client: MlflowClient, run: Any, key: str) -> float | None:
    """The highest value of a metric."""
    if key not in run.data.metrics:
        return None
    history = client.get_metric_history(run.info.run_id, key)
    return max((point.value for point in history), default=None)
