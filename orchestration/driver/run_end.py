"""What a run whose training is done leaves in MLflow; by its driver, or later by `sync`."""

import contextlib
import io

from PIL import Image

from datasets.errors import StoreError
from datasets.packing.audit import read_sample
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage.store import Store
from inception.predictions import assess
from orchestration.driver.preparation import Sent
from orchestration.errors import ServiceError, TrainingError
from orchestration.job.job import Job
from orchestration.report.html import timeline_page
from orchestration.report.run_report import DRAWN, of_evaluation, of_history
from orchestration.run.checkpoint import Summary, checkpoint_tags, newest_summary
from orchestration.run.predictions_file import load_predictions
from orchestration.run.timeline import load_attempts
from orchestration.stack.local import Log
from orchestration.tracking.model import log_classifier, register_model
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import (
    FINISHED,
    MODEL_TAG,
    close_run,
    histories,
    log_file,
    send_file,
    tag_of,
    tag_run,
)
from orchestration.tracking.writer import send_kept
from orchestration.worker.final_network import read_network


def finalize_run(
    job: Job,
    store: Store,
    run: RunRef,
    run_url: str,
    end: Summary,
    tags: dict[str, str],
    log: Log,
    *,
    sent: Sent,
) -> str | None:
    """Logs what a complete run has to show and its model, and ends it in MLflow with these tags and
    those of its checkpoints; what MLflow does not take is kept for `sync`. end: of its last
    checkpoint; sent: what MLflow has already. -> the model's URI, None where MLflow was away.
    Raises StoreError, TrainingError."""
    outbox = Outbox(store, run_url)
    if not sent.evaluation:
        send_evaluation(job, store, run, run_url)
    tags = tags | checkpoint_tags(store, run_url)
    try:
        send_kept(run, outbox)
        send_kept_files(run, outbox)
        log_plots(store, run, run_url, has_curves=sent.curves)
        uri = log_final_model(job, store, run, run_url, end)
        close_run(run, FINISHED, tags)
        with contextlib.suppress(StoreError):  # of a driver that failed as this one took it over
            outbox.forget_end()
    except ServiceError as error:
        outbox.keep_end(FINISHED, tags)
        log(f"note: {error}")
        log(f"training is complete; `rayception sync {run_url}` sends MLflow what is left")
        return None
    return uri


def send_kept_files(run: RunRef, outbox: Outbox) -> int:
    """Sends the files of the outbox; -> how many there were. Raises ServiceError, StoreError."""
    count = 0
    for path, url, content in outbox.files():
        log_file(run, path, content)
        outbox.drop([url])
        count += 1
    return count


def log_final_model(job: Job, store: Store, run: RunRef, run_url: str, end: Summary) -> str:
    """Logs the run's final model, of its last checkpoint, and registers it where the job says so,
    once; -> models:/ URI. Raises ServiceError, StoreError, TrainingError."""
    uri = tag_of(run, MODEL_TAG)
    if uri is None:
        val = load_manifest(store, job.data.val)
        uri = log_classifier(
            run,
            read_network(job, store, run_url, end),
            classes=val.classes,
            input_size=job.model.input_size,
            crop=job.data.eval_crop,
            example=_example(store, val),
            step=end.step,
        )
        tag_run(run, {MODEL_TAG: uri})
    if job.tracking.register is not None and end.top1 is not None:
        scored_on = load_manifest(store, job.data.val).fingerprint
        name = job.tracking.register
        register_model(run, uri, name=name, top1=end.top1, scored_on=scored_on)
    return uri


def _example(store: Store, val: Manifest) -> bytes:
    """The first held-out image, as PNG."""
    image, _ = read_sample(store, val, 0, 0)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def send_evaluation(job: Job, store: Store, run: RunRef, run_url: str) -> None:
    """What the network said of the held-out split at the run's end, as tables and pictures; what
    MLflow does not take waits in the outbox. Raises StoreError, TrainingError."""
    predictions = load_predictions(store, run_url)
    if predictions is None:
        return
    outbox = Outbox(store, run_url)
    val = load_manifest(store, job.data.val)
    assessment = assess(predictions, len(val.classes))
    for name, content in of_evaluation(store, val, predictions, assessment).items():
        send_file(run, outbox, f"evaluation/{name}", content)


def log_plots(store: Store, run: RunRef, run_url: str, *, has_curves: bool = False) -> None:
    """The curves of what MLflow has by now, unless it has them, and the run's timeline; nothing of
    a run that never began to train. Raises ServiceError, StoreError."""
    attempts = load_attempts(store, run_url)
    if not attempts:
        return
    if not has_curves:
        log_curves(run)
    page = timeline_page(attempts, run_url.rpartition("/")[2])
    log_file(run, "pictures/timeline.html", page.encode())


def log_curves(run: RunRef, *, until: int | None = None) -> bool:
    """The curves of what MLflow has by now; until: only where the evaluation after that step, the
    last point of all, is there. -> whether they were drawn. Raises ServiceError."""
    points = histories(run, DRAWN)
    last = max((step for step, _ in points.get("val/top1", [])), default=0)
    if until is not None and last < until:
        return False
    for name, content in of_history(points).items():
        log_file(run, f"pictures/{name}", content)
    return True


def sync_run(job: Job, store: Store, run: RunRef, run_url: str) -> dict[str, int | str]:
    """Sends all that the run's outbox holds: points, files, and, of a run that has ended, its model
    and its end; -> how many of each. Called again it goes on where it ended.

    Raises ServiceError where MLflow does not answer, TrainingError where a complete run has no
    checkpoint left, StoreError.
    """
    outbox = Outbox(store, run_url)
    points = send_kept(run, outbox)
    files = send_kept_files(run, outbox)
    end = outbox.end()
    if end is not None:
        status, tags = end
        if status == FINISHED:
            last = newest_summary(store, run_url)
            if last is None:
                raise TrainingError(
                    f"{run_url}: got no whole checkpoint; the model is made of the last one. Look "
                    "what became of the run's folder."
                )
            log_final_model(job, store, run, run_url, last)
        close_run(run, status, tags)
        log_plots(store, run, run_url)
        outbox.forget_end()
    return {"points": points, "files": files, "ended": "" if end is None else end[0]}
