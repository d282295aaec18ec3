"""How a run starts or resumes, and what it logs to MLflow then: params, tags, a description, its
datasets."""

import contextlib
import datetime
import json
import logging
import os
import secrets
import shlex
from dataclasses import dataclass
from typing import Any

from datasets.shards.manifest import Manifest
from orchestration.cluster.checkout import Checkout, read_checkout
from orchestration.cluster.preflight import check_storage
from orchestration.cluster.versions import DASHBOARD
from orchestration.driver.run import PlannedData, Run
from orchestration.errors import JobError, ServiceError
from orchestration.job.cluster import LOCAL
from orchestration.job.job import Job
from orchestration.job.load import flatten, to_dict, to_yaml
from orchestration.job.plan import Plan
from orchestration.run.checkpoint import Checkpoint, save_checkpoint
from orchestration.run.lease import Lease
from orchestration.run.record import RUN_FILE, RunRecord, save_record
from orchestration.stack.local import Log
from orchestration.stack.state import Stack
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import (
    FINISHED,
    NOTE_TAG,
    STORAGE_TAG,
    Dataset,
    close_run,
    log_datasets,
    log_text,
    open_run,
    reopen_run,
    run_status,
    status_of,
)

logger = logging.getLogger(__name__)

SUBMISSION_TAG, PAGE_TAG = "rayception.submission", "rayception.submission_page"
PLANNED = (
    "world_size",
    "num_nodes",
    "num_micro_batches",
    "max_micro_batches_per_rank",
    "train_samples",
    "val_samples",
    "steps_per_epoch",
    "total_steps",
    "warmup_steps",
    "parameters",
    "multiply_adds",
    "training_flops",
)


def tracking_uri(job: Job, stack: Stack | None) -> str:
    """Where the job's MLflow server answers."""
    return stack.mlflow_url if job.tracking.uri == LOCAL and stack else job.tracking.uri


def run_of(record: RunRecord, job: Job, stack: Stack | None) -> RunRef:
    """A recorded run's place in MLflow."""
    uri = tracking_uri(job, stack)
    return RunRef(uri=uri, experiment_id=record.experiment_id, run_id=record.run_id)


def fresh_name(job: Job) -> str:
    """A name that no other run has."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{job.name}-{stamp}-{secrets.token_hex(2)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRun:
    """A run to start. job: as the person wrote it, with every accelerator that it may get. tags: of
    its MLflow run. start_from: the checkpoint that it begins with, if not from the job's own start.
    """

    job: Job
    tracking_uri: str
    tags: dict[str, str]
    start_from: Checkpoint | None


def start_run(new: NewRun, data: PlannedData, lease: Lease) -> RunRef:
    """Opens a new run in MLflow and in the lease's folder, and acquires the lease.

    The record is written last: a run with a record has begun, and can be resumed. Raises JobError
    if a run of that name has begun, ServiceError, StoreError; the MLflow run is FAILED then.
    """
    store, url, job = lease.store, lease.run_url, new.job
    name = url.rpartition("/")[2]
    check_storage(store, url)
    if store.exists(f"{url}/{RUN_FILE}"):
        raise JobError(
            f"--name: got {name}, and another driver has begun a run of that name meanwhile; "
            "a run begins once. Watch that one, or call this again to take it over."
        )
    code = read_checkout()
    run = open_run(
        new.tracking_uri,
        experiment=job.experiment,
        name=name,
        params=params_of(job, data.plan),
        tags=new.tags | code_tags(code),
    )
    try:
        log_datasets(run, datasets_of(job, data.train, data.val))
        log_text(run, to_yaml(job), "job.yaml")
        log_text(run, reproduce(url, code), "reproduce.sh")
        if code.diff:
            log_text(run, code.diff, "code.diff")
        if new.start_from is not None:
            save_checkpoint(store, url, new.start_from)
        lease.acquire()
        record = RunRecord(
            name=name,
            job=to_dict(job),
            classes=list(data.train.classes),
            experiment_id=run.experiment_id,
            run_id=run.run_id,
        )
        save_record(store, url, record)
    except BaseException as error:
        with contextlib.suppress(ServiceError):
            close_run(run, status_of(error))
        raise
    return run


def status_before(run: Run) -> str:
    """The MLflow status of a run to resume; RUNNING also if its driver was killed, or lives; ''
    while MLflow is unreachable. Raises JobError if the run is complete; StoreError."""
    end = run.outbox.end()  # not yet known to MLflow
    try:
        status = run_status(run.mlflow) if end is None else end[0]
    except ServiceError:
        return ""
    if status == FINISHED:
        raise JobError(
            f"{run.url}: got a run that is complete; there is nothing to go on with. "
            "`rayception fork` it, with more epochs or another recipe."
        )
    return status


def resume_run(run: Run, tags: dict[str, str], log: Log) -> None:
    """Reopens a run in MLflow; goes on without MLflow if it is unreachable. Raises StoreError."""
    run.outbox.forget_end()
    try:
        reopen_run(run.mlflow, tags=tags)
    except ServiceError as error:
        log(f"note: {error}")
        log("going on; what MLflow is to have is kept in storage until it answers")


def params_of(job: Job, plan: Plan) -> dict[str, Any]:
    """The flattened job, and what was derived from it as `plan.NAME`."""
    return flatten(to_dict(job)) | {f"plan.{name}": getattr(plan, name) for name in PLANNED}


def tags_of(job: Job, plan: Plan, train: Manifest, run_url: str) -> dict[str, str]:
    """What finds and explains a run in MLflow's table. job: on the accelerator that it got."""
    tags = {
        STORAGE_TAG: run_url,
        "rayception.world_size": str(plan.world_size),
        "rayception.accelerator": str(job.cluster.accelerator),
        "rayception.train_fingerprint": train.fingerprint,
        "rayception.parameters": str(plan.parameters),
        "rayception.image": job.cluster.environment.image or "",
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"rayception run {job.name}",
        NOTE_TAG: note_of(job, plan, run_url),
    }
    return {key: value for key, value in tags.items() if value} | submission_tags()


def code_tags(code: Checkout) -> dict[str, str]:
    """Which code runs."""
    commit = {"mlflow.source.git.commit": code.commit} if code.commit else {}
    return commit | {"rayception.dirty": "yes" if code.diff else "no"}


def note_of(job: Job, plan: Plan, run_url: str) -> str:
    """The run's description, in Markdown."""
    model = job.model
    lines = [
        f"**{model.name}**, {plan.parameters / 1e6:.2f} M parameters at {model.input_size} px, on "
        f"{plan.train_samples:,} images of {model.num_classes:,} classes for "
        f"{job.schedule.epochs:g} epochs ({plan.total_steps:,} steps of "
        f"{plan.global_batch_size:,}).",
        f"{plan.world_size} ranks on {job.cluster.accelerator} x {plan.num_nodes}.",
        f"Checkpoints: `{run_url}`",
        f"Go on with it: `rayception resume {shlex.quote(run_url)}`",
    ]
    submission = submission_tags()
    if PAGE_TAG in submission:
        lines.append(f"Begun by [{submission[SUBMISSION_TAG]}]({submission[PAGE_TAG]})")
    return "\n\n".join(lines)


def datasets_of(job: Job, train: Manifest, val: Manifest) -> list[Dataset]:
    """The splits by their manifests' fingerprints."""
    return [
        Dataset(
            name=f"{job.name} {context}",
            digest=manifest.fingerprint[:36],
            source=url,
            context=context,
            profile={
                "num_samples": manifest.num_samples,
                "num_shards": len(manifest.shards),
                "num_classes": len(manifest.classes),
            },
        )
        for url, manifest, context in (
            (job.data.train, train, "training"),
            (job.data.val, val, "validation"),
        )
    ]


def reproduce(run_url: str, code: Checkout) -> str:
    """The commands that make the run again, from its artifacts."""
    checkout = f"git checkout {code.commit}\n" if code.commit else ""
    patch = "git apply code.diff\n" if code.diff else ""
    return (
        f"# Makes the run in {run_url} again, with the files beside this one.\n"
        f"{checkout}{patch}make venv\n.venv/bin/rayception run job.yaml\n"
    )


def submission_tags() -> dict[str, str]:
    """Ray's id of the submission that this process is, and its page in Ray's dashboard where we
    sent it and know under which URL; nothing where it was not submitted. Ray's Jobs API says the id
    in a variable of its own."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return {}
    submission = (config.get("metadata") or {}).get("job_submission_id")
    if submission is None:
        return {}
    found = {SUBMISSION_TAG: str(submission)}
    if DASHBOARD in os.environ:
        found[PAGE_TAG] = f"{os.environ[DASHBOARD].rstrip('/')}/#/jobs/{submission}"
    return found
