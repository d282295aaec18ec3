"""One evaluation, from its checkpoints to its MLflow run."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from inception.predictions import evaluate_predictions
from orchestration.driver.run import run_ref_of, tracking_uri
from orchestration.evaluation.evaluate import (
    Request,
    check_members,
    choose_kinds,
    count_chunks,
    score,
)
from orchestration.evaluation.trained import TrainedNetwork
from orchestration.job.job import Job
from orchestration.report.run_report import evaluation_files
from orchestration.report.scorecard import (
    class_accuracies,
    confused_pairs,
    drop_blacklisted,
    mlflow_metrics,
    percent_metrics,
)
from orchestration.run.storage import build_store_config
from orchestration.stack.state import Stack
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import close_run, log_file, log_metrics, open_run

TOP = 5  # classes and pairs in a result


def evaluate_run(
    store: Store,
    members: Sequence[TrainedNetwork],
    job: Job,
    stack: Stack | None,
    *,
    crops: int,
    weights: str,
    blacklist: Sequence[str],
    on_progress: Callable[[int, int], object],
) -> dict[str, Any]:
    """Scores the ensemble of `members` on the job's validation split, on the connected cluster, and
    logs the result to the checkpoint's MLflow run, an ensemble's to a new run. -> the result.

    weights: raw, average or both. on_progress: as of `score`. The keywords are the options of
    `rayception evaluate`. Raises JobError, DataError, StoreError, TrainingError, ServiceError.
    """
    manifest = load_manifest(store, job.data.val, verify=job.data.verify)
    check_members(members, manifest.classes)
    kinds = choose_kinds(weights, members)
    request = Request(
        urls=tuple(member.url for member in members),
        kinds=kinds,
        job=job,
        crops=crops,
        num_chunks=count_chunks(job, crops, manifest.num_samples),
        store=build_store_config(job, stack),
    )
    predictions, damaged = score(request, on_progress)
    dropped = 0
    for kind in kinds:
        predictions[kind], dropped = drop_blacklisted(predictions[kind], blacklist)
    assessments = {
        kind: evaluate_predictions(predictions[kind], len(manifest.classes)) for kind in kinds
    }
    best = assessments[kinds[-1]]
    result = {
        "checkpoints": request.urls,
        "data": job.data.val,
        "crops": crops,
        "weights": {kind: percent_metrics(assessment) for kind, assessment in assessments.items()},
        "blacklisted": dropped,
        "damaged": damaged,
        "worst_classes": class_accuracies(best, manifest.classes)[:TOP],
        "most_confused": confused_pairs(best, manifest.classes)[:TOP],
    }
    run = _open_run(members, job, stack)
    if run is not None:
        log_metrics(run, mlflow_metrics(assessments, crops), step=max(m.step for m in members))
        folder = f"evaluation/{crops}-crop{'s' if crops > 1 else ''}"
        for kind, assessment in assessments.items():
            files = evaluation_files(store, manifest, predictions[kind], assessment)
            for name, content in files.items():
                log_file(run, f"{folder}/{kind}/{name}", content)
        log_file(run, f"{folder}/result.json", json.dumps(result, indent=1).encode())
        if len(members) > 1:
            close_run(run, "FINISHED")
    return {**result, "run_id": run.run_id if run is not None else None}


def _open_run(members: Sequence[TrainedNetwork], job: Job, stack: Stack | None) -> RunRef | None:
    """The MLflow run of the result: the checkpoint's, or a new one for an ensemble; None if a
    member is an exported file."""
    records = [member.record for member in members if member.record is not None]
    if len(records) < len(members):
        return None
    if len(records) == 1:
        return run_ref_of(records[0], job, stack)
    return open_run(
        tracking_uri(job, stack),
        experiment=job.experiment,
        name=f"ensemble-of-{len(records)}",
        params={f"member.{i}": member.url for i, member in enumerate(members)},
        tags={"rayception.members": " ".join(record.run_id for record in records)},
    )
