"""One evaluation from its checkpoints to MLflow."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from datasets.shards.manifest import load_manifest
from datasets.storage.store import Store
from inception.predictions import assess
from orchestration.driver.run_start import run_of, tracking_uri
from orchestration.evaluation.evaluate import build_request, check_members, kinds_of, score
from orchestration.evaluation.trained import TrainedNetwork
from orchestration.job.job import Job
from orchestration.report.run_report import of_evaluation
from orchestration.report.scorecard import (
    class_rows,
    confused_pairs,
    figures,
    metrics_of,
    without_blacklisted,
)
from orchestration.run.storage import build_store_config
from orchestration.stack.state import Stack
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import close_run, log_file, log_metrics, log_text, open_run

TOLD = 5  # classes and pairs that a result names
Count = Callable[[int], object]


def evaluate_run(
    store: Store,
    found: Sequence[TrainedNetwork],
    job: Job,
    stack: Stack | None,
    *,
    crops: int,
    weights: str,
    blacklist: Sequence[str],
    on_total: Count,
    on_chunk: Callable[[], object],
) -> dict[str, Any]:
    """Scores the ensemble of `found` on the job's held-out split, on the connected cluster; logs it
    to the checkpoint's MLflow run, an ensemble to a run of its own. -> what is told of it.

    weights: raw, average or both. Raises JobError, DataError, StoreError, TrainingError,
    ServiceError.
    """
    manifest = load_manifest(store, job.data.val)
    check_members(found, manifest.classes)
    kinds = kinds_of(weights, found)
    request = build_request(
        found, kinds, job, crops=crops, num_samples=manifest.num_samples,
        store=build_store_config(job, stack),
    )  # fmt: skip
    on_total(request.num_chunks)
    made, damaged = score(request, job, on_chunk)
    dropped = 0
    for kind in kinds:
        made[kind], dropped = without_blacklisted(made[kind], blacklist)
    results = {kind: assess(made[kind], len(manifest.classes)) for kind in kinds}
    best = results[kinds[-1]]
    per_class = class_rows(best, manifest.classes)
    pairs = confused_pairs(best, manifest.classes)
    result = {
        "checkpoints": [one.url for one in found],
        "data": job.data.val,
        "crops": crops,
        "weights": {kind: figures(one) for kind, one in results.items()},
        "blacklisted": dropped,
        "damaged": damaged,
        "worst_classes": per_class[:TOLD],
        "most_confused": pairs[:TOLD],
    }
    run = _run_of(found, job, stack)
    if run is not None:
        log_metrics(run, metrics_of(results, crops), step=max(one.step for one in found))
        folder = f"evaluation/{crops}-crop{'s' if crops > 1 else ''}"
        for kind, one in results.items():
            for name, content in of_evaluation(store, manifest, made[kind], one).items():
                log_file(run, f"{folder}/{kind}/{name}", content)
        log_text(run, json.dumps(result, indent=1), f"{folder}/result.json")
        if len(found) > 1:
            close_run(run, "FINISHED")
    return {**result, "run_id": run.run_id if run is not None else None}


def _run_of(found: Sequence[TrainedNetwork], job: Job, stack: Stack | None) -> RunRef | None:
    """The MLflow run that a result belongs to; an ensemble gets its own beside its first member."""
    records = [one.record for one in found if one.record is not None]
    if len(records) < len(found):
        return None
    if len(records) == 1:
        return run_of(records[0], job, stack)
    return open_run(
        tracking_uri(job, stack),
        experiment=job.experiment,
        name=f"ensemble-of-{len(records)}",
        params={f"member.{i}": one.url for i, one in enumerate(found)},
        tags={"rayception.members": " ".join(record.run_id for record in records)},
    )
