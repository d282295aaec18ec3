"""What a completed run logs to MLflow: sent by its driver, or later by `sync`."""

import contextlib
import io

from PIL import Image

from datasets.errors import StoreError
from datasets.packing.audit import read_sample
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store
from inception.predictions import evaluate_predictions
from orchestration.driver.run import Run
from orchestration.errors import ServiceError, TrainingError
from orchestration.report.html import timeline_page
from orchestration.report.run_report import PLOTTED_METRICS, evaluation_files, plot_curves
from orchestration.run.checkpoint import CheckpointSummary, checkpoint_tags, newest_summary
from orchestration.run.predictions_file import load_predictions
from orchestration.run.timeline import load_attempts
from orchestration.stack.local import Log
from orchestration.tracking import runs
from orchestration.tracking.model import log_classifier, register_model
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.writer import send_outbox_points
from orchestration.worker.final_network import read_network


def finalize_run(
    run: Run,
    last: CheckpointSummary,
    tags: dict[str, str],
    log: Log,
    *,
    has_sent_evaluation: bool,
    has_sent_curves: bool,
) -> str | None:
    """Logs a completed run's report and model, and ends it in MLflow with these tags and those of
    its checkpoints. If MLflow is unreachable, the outbox keeps the rest for `sync`.

    last: the last checkpoint. -> the model's URI, None if MLflow was unreachable. Raises
    StoreError, TrainingError.
    """
    outbox = run.outbox
    if not has_sent_evaluation:
        send_evaluation(run)
    tags = tags | checkpoint_tags(run.store, run.url)
    try:
        _send_outbox(run)
        log_plots(run, has_curves=has_sent_curves)
        uri = log_final_model(run, last)
        runs.close_run(run.mlflow, runs.FINISHED, tags)
        with contextlib.suppress(StoreError):  # of an earlier driver that ended as failed
            outbox.clear_end()
    except ServiceError as error:
        outbox.set_end(runs.FINISHED, tags)
        log(f"note: {error}")
        log(f"training is complete; `rayception sync {run.url}` sends MLflow what is left")
        return None
    return uri


def _send_outbox(run: Run) -> dict[str, int]:
    """Sends the outbox; -> its numbers of points and files. Raises ServiceError, StoreError."""
    points = send_outbox_points(run.mlflow, run.outbox)
    files = 0
    for path, url, content in run.outbox.files():
        runs.log_file(run.mlflow, path, content)
        run.outbox.delete([url])
        files += 1
    return {"points": points, "files": files}


def log_final_model(run: Run, last: CheckpointSummary) -> str:
    """Logs the model of the last checkpoint unless the run has one, and registers it if the job
    says so; -> its models:/ URI. Raises ServiceError, StoreError, TrainingError."""
    job, store = run.job, run.store
    uri = runs.get_tag(run.mlflow, runs.MODEL_TAG)
    if uri is None:
        val = load_manifest(store, job.data.val, verify=False)
        uri = log_classifier(
            run.mlflow,
            read_network(job, store, run.url, last),
            classes=val.classes,
            input_size=job.model.input_size,
            crop=job.data.eval_crop,
            example=_first_image(store, val),
            step=last.step,
        )
        runs.set_tags(run.mlflow, {runs.MODEL_TAG: uri})
    if job.tracking.register is not None and last.top1 is not None:
        scored_on = load_manifest(store, job.data.val, verify=False).fingerprint
        name = job.tracking.register
        register_model(run.mlflow, uri, name=name, top1=last.top1, scored_on=scored_on)
    return uri


def _first_image(store: Store, val: Manifest) -> bytes:
    """The first image of the split, as PNG."""
    image, _ = read_sample(store, val, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def send_evaluation(run: Run) -> None:
    """Sends tables and plots of the final predictions, to the outbox while MLflow is unreachable.
    Raises StoreError, TrainingError."""
    predictions = load_predictions(run.store, run.url)
    if predictions is None:
        return
    val = load_manifest(run.store, run.job.data.val, verify=False)
    assessment = evaluate_predictions(predictions, len(val.classes))
    for name, content in evaluation_files(run.store, val, predictions, assessment).items():
        runs.send_file(run.mlflow, run.outbox, f"evaluation/{name}", content)


def log_plots(run: Run, *, has_curves: bool = False) -> None:
    """Logs the run's timeline, and its curves unless MLflow has them; nothing if it never trained.
    Raises ServiceError, StoreError."""
    attempts = load_attempts(run.store, run.url)
    if not attempts:
        return
    if not has_curves:
        log_curves(run.mlflow)
    runs.log_file(run.mlflow, "pictures/timeline.html", timeline_page(attempts, run.name).encode())


def log_curves(run: RunRef, *, until: int | None = None) -> bool:
    """Plots the metrics that MLflow has by now. until: only if it has the evaluation after that
    step, which is logged last. -> whether they were plotted. Raises ServiceError."""
    points = runs.metric_histories(run, PLOTTED_METRICS)
    last = max((step for step, _ in points.get("val/top1", [])), default=0)
    if until is not None and last < until:
        return False
    for name, content in plot_curves(points).items():
        runs.log_file(run, f"pictures/{name}", content)
    return True


def sync_run(run: Run) -> dict[str, int | str]:
    """Sends everything in the run's outbox: points, files and, if the run has ended, its model and
    status; -> the numbers of points and files, and the status. May be interrupted and repeated.

    Raises ServiceError if MLflow does not answer, TrainingError if a complete run has no checkpoint
    left, StoreError.
    """
    outbox = run.outbox
    sent = _send_outbox(run)
    end = outbox.end()
    if end is not None:
        status, tags = end
        if status == runs.FINISHED:
            last = newest_summary(run.store, run.url)
            if last is None:
                raise TrainingError(
                    f"{run.url}: got no whole checkpoint; the model is made of the last one. See "
                    "what became of the run's folder."
                )
            log_final_model(run, last)
        runs.close_run(run.mlflow, status, tags)
        log_plots(run)
        outbox.clear_end()
    return {**sent, "ended": "" if end is None else end[0]}
