"""The runs of a server, read for a person: searched, found by their names, side by side."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from orchestration.errors import JobError
from orchestration.job.rules import without_secrets
from orchestration.run.metrics import top1_of
from orchestration.run.timeline import ATTEMPTS_TAG
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import STORAGE_TAG, SWEEP_TAG, answering
from orchestration.tracking.table_view import VIEW_TAG, table_page

STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
PAGE = 1000  # runs or experiments a request
TOP1_KEYS = ("val_ema/top1", "val/top1")
RUN_ID = re.compile(r"[0-9a-f]{8,32}")
NEAR = 200  # of the newest runs, among which a mistyped name is looked for
GROUPS = ("val_ema/", "val/", "train/")  # the order of metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """A run in one line.

    started_s: Unix time. duration_s: up to now where it has not ended. top1: percent, the last.
    attempts: None where the run does not say. children: of a sweep's parent, None for other runs.
    silent_s: how long a running one of ours has said nothing, None for any other.
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
    """Runs side by side; each list has one entry a run, None where a run has no such value.

    params: those that differ. metrics: last values; `KEY (best)` is the highest of an accuracy.
    """

    runs: list[RunRow]
    params: dict[str, list[str | None]]
    metrics: dict[str, list[float | None]]


def search(
    uri: str,
    *,
    experiment: str | None = None,
    statuses: Sequence[str] = (),
    where: str = "",
    limit: int = 20,
) -> list[RunRow]:
    """At most `limit` runs, the newest first. where: a filter in MLflow's own words.

    Raises JobError: no such experiment, a filter that MLflow does not understand; ServiceError.
    """
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        names = _experiments(client)
        chosen = list(names) if experiment is None else [_id_of(names, experiment)]
        # MLflow knows no "one of" for a status, and no "or": none of the others is the same.
        others = [one for one in STATUSES if one not in statuses] if statuses else []
        clauses = [f"attributes.status != '{other}'" for other in others]
        try:
            found = _search(client, chosen, [*clauses, *([where] if where else [])], limit)
        except MlflowException as error:
            if where and error.error_code == "INVALID_PARAMETER_VALUE":
                raise JobError(_misread(where, error)) from error
            raise
        return [_row(client, run, names) for run in found]


def find_table(uri: str, name: str) -> str:
    """The page of an experiment's table, in our columns where a run of ours has put them there.
    Raises JobError where there is no experiment of that name; ServiceError."""
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        experiment_id = _id_of(_experiments(client), name)
        has_view = VIEW_TAG in client.get_experiment(experiment_id).tags
    return table_page(experiment_id, has_view=has_view)


def find(uri: str, called: str) -> RunRef:
    """The run that a person calls so: by its id (or the first 8 letters of it and more), by its
    name, or by the URL of its folder in storage.

    Raises JobError where there is none, or more than one; ServiceError.
    """
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        run = _find(client, _experiments(client), called)
    return RunRef(uri=uri, experiment_id=str(run.info.experiment_id), run_id=run.info.run_id)


def compare(uri: str, called: Sequence[str]) -> Comparison:
    """Raises JobError where a run is not found, or is called by more than one; ServiceError."""
    client = MlflowClient(tracking_uri=uri)
    with answering(uri):
        names = _experiments(client)
        runs = [_find(client, names, one) for one in called]
        params = {
            key: values
            for key in dict.fromkeys(key for run in runs for key in run.data.params)
            if len(set(values := [run.data.params.get(key) for run in runs])) > 1
        }
        metrics = {key: [run.data.metrics.get(key) for run in runs] for key in _keys(runs)}
        with_best: dict[str, list[float | None]] = {}
        for key, values in metrics.items():
            with_best[key] = values
            if key in TOP1_KEYS:
                with_best[f"{key} (best)"] = [_best(client, run, key) for run in runs]
        return Comparison(
            runs=[_row(client, run, names) for run in runs], params=params, metrics=with_best
        )


def _experiments(client: MlflowClient) -> dict[str, str]:
    """Names by id, of those that this user may read."""
    names: dict[str, str] = {}
    token = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        names |= {str(one.experiment_id): one.name for one in page}
        token = page.token
        if not token:
            return names


def _search(
    client: MlflowClient, experiments: Sequence[str], clauses: Sequence[str], limit: int
) -> list[Any]:
    """The newest `limit` runs that fulfil every clause."""
    found: list[Any] = []
    token = None
    while len(found) < limit and experiments:
        page = client.search_runs(
            list(experiments),
            " and ".join(clauses),
            max_results=min(PAGE, limit - len(found)),
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            break
    return found


def _id_of(names: dict[str, str], name: str) -> str:
    for key, known in names.items():
        if known == name:
            return key
    raise JobError(
        f"--experiment: got {name!r}; the server has {', '.join(sorted(names.values())) or 'none'}."
        " Name one of them, or leave it out."
    )


def _find(client: MlflowClient, names: dict[str, str], called: str) -> Any:
    """The one run of this id, name or URL."""
    ids = list(names)
    is_url = "://" in called
    name = called.rstrip("/").rpartition("/")[2] if is_url else called
    tries = [[f"attributes.run_name = {_quoted(name)}"]]
    if is_url:  # two stores may have a folder of one name
        url = _quoted(called.rstrip("/"))
        tries.insert(0, [*tries[0], f"tags.`{STORAGE_TAG}` = {url}"])
    elif RUN_ID.fullmatch(called):
        tries.insert(0, [f"attributes.run_id LIKE '{called}%'"])
    for clauses in tries:
        found = _search(client, ids, clauses, 6)
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(run.info.run_id for run in found[:5])
            more = " and more" if len(found) > 5 else ""
            raise JobError(
                f"RUN: got {without_secrets(called)!r}, and several runs are called so ({some}"
                f"{more}); one run is meant. Name it by its id."
            )
    newest = [run.info.run_name for run in _search(client, ids, [], NEAR)]
    near = get_close_matches(name, newest, n=1)
    hint = f"Did you mean {near[0]}?" if near else "See which there are with `rayception runs`."
    raise JobError(
        f"RUN: got {without_secrets(called)!r}; the id, the name or the URL of a run, and the "
        f"server has none such. {hint}"
    )


def _quoted(text: str) -> str:
    """As MLflow's filters write a string; they know no escape."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _misread(where: str, error: MlflowException) -> str:
    said = " ".join(str(error).removeprefix("INVALID_PARAMETER_VALUE:").split())
    short = said if len(said) <= 160 else f"{said[:160]}..."
    return (
        f"--filter: got {where!r}; a filter in MLflow's words, which says: {short.rstrip('.')}. "
        "Write one such as \"metrics.`val/top1` > 90 and params.optim.name = 'sgd'\"."
    )


def _row(client: MlflowClient, run: Any, names: dict[str, str]) -> RunRow:
    metrics, tags = run.data.metrics, run.data.tags
    experiment_id = str(run.info.experiment_id)
    # The entity keeps the steps and times of its last values to itself; its message has them.
    last = run.data.to_proto().metrics
    steps = [one.step for one in last if one.key.startswith("train/")]
    started_s = (run.info.start_time or 0) / 1000
    heard_s = max((one.timestamp / 1000 for one in last), default=started_s)
    is_over = str(run.info.status) != "RUNNING"  # one that goes on keeps the time of its last end
    ended_s = run.info.end_time / 1000 if is_over and run.info.end_time else time.time()
    attempts = tags.get(ATTEMPTS_TAG, "")
    children = None
    if SWEEP_TAG in tags:
        of_it = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        children = len(_search(client, [experiment_id], [of_it], 10 * PAGE))
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
        silent_s=None if is_over or STORAGE_TAG not in tags else max(0.0, time.time() - heard_s),
    )


def _keys(runs: Sequence[Any]) -> list[str]:
    """Every metric of any of the runs: accuracies first, then training, then the rest."""
    keys = sorted({key for run in runs for key in run.data.metrics})
    rank = {group: number for number, group in enumerate(GROUPS)}
    return sorted(keys, key=lambda key: rank.get(f"{key.partition('/')[0]}/", len(rank)))


def _best(client: MlflowClient, run: Any, key: str) -> float | None:
    """The highest value that a metric had."""
    if key not in run.data.metrics:
        return None
    history = client.get_metric_history(run.info.run_id, key)
    return max((point.value for point in history), default=None)
