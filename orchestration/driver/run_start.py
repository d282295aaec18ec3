"""How a run starts, resumes and, if incomplete, ends in MLflow; its params, tags, description and
datasets there."""

import contextlib
import json
import os
import shlex

from datasets.errors import StoreError
from datasets.shards.manifest import Manifest
from orchestration.cluster.preflight import check_storage
from orchestration.cluster.versions import DASHBOARD_VARIABLE
from orchestration.cluster.working_dir import Checkout, read_checkout
from orchestration.driver.run import PlannedData, Request, Run
from orchestration.errors import JobError, ServiceError
from orchestration.job.job import Job
from orchestration.job.load import flatten, to_dict, to_yaml
from orchestration.job.plan import Plan
from orchestration.run.checkpoint import checkpoint_tags, save_checkpoint
from orchestration.run.lease import Lease
from orchestration.run.record import RUN_FILE, RunRecord, save_record
from orchestration.stack.local import Log
from orchestration.tracking import runs

SUBMISSION_TAG, PAGE_TAG = "rayception.submission", "rayception.submission_page"
PLAN_PARAMS = (
    "world_size", "num_nodes", "num_micro_batches", "max_micro_batches_per_rank", "train_samples",
    "val_samples", "steps_per_epoch", "total_steps", "warmup_steps", "parameters", "multiply_adds",
    "training_flops",
)  # fmt: skip


def start_run(request: Request, job: Job, data: PlannedData, lease: Lease, mlflow_uri: str) -> Run:
    """Opens a new run in MLflow and in the lease's folder, and acquires the lease.

    job: the request's, on the accelerator that it got; MLflow and the record get it as written. The
    record is written last: a run with a record has begun, and can be resumed. Raises JobError if a
    run of that name has begun, ServiceError, StoreError; the MLflow run is FAILED then.
    """
    written = request.job
    store, url = lease.store, lease.run_url
    name = url.rpartition("/")[2]
    check_storage(store, url)
    if store.exists(f"{url}/{RUN_FILE}"):
        raise JobError(
            f"--name: got {name}, and another driver has just started a run of that name; a run "
            "starts once. Watch that one, or call this again to take it over."
        )
    tags = _tags_of(job, data.plan, data.train, url)
    if request.parent is not None:
        tags |= runs.child_tags(*request.parent)
    code = read_checkout()
    tags["rayception.dirty"] = "yes" if code.diff else "no"
    if code.commit:
        tags["mlflow.source.git.commit"] = code.commit
    plan_params = {f"plan.{field}": getattr(data.plan, field) for field in PLAN_PARAMS}
    run = runs.open_run(
        mlflow_uri,
        experiment=written.experiment,
        name=name,
        params=flatten(to_dict(written)) | plan_params,
        tags=tags,
    )
    try:
        splits = [
            _dataset(written, "training", written.data.train, data.train),
            _dataset(written, "validation", written.data.val, data.val),
        ]
        runs.log_datasets(run, splits)
        runs.log_file(run, "job.yaml", to_yaml(written).encode())
        runs.log_file(run, "reproduce.sh", _reproduce_script(url, code).encode())
        if code.diff:
            runs.log_file(run, "code.diff", code.diff.encode())
        if request.start_from is not None:
            save_checkpoint(store, url, request.start_from)
        lease.acquire()
        record = RunRecord(
            name=name,
            job=to_dict(written),
            classes=list(data.train.classes),
            experiment_id=run.experiment_id,
            run_id=run.run_id,
        )
        save_record(store, url, record)
    except BaseException as error:
        with contextlib.suppress(ServiceError):
            runs.close_run(run, runs.status_of(error))
        raise
    return Run(job=job, store=store, url=url, mlflow=run)


def status_before(run: Run) -> str:
    """The MLflow status of a run to resume, '' while MLflow is unreachable; RUNNING does not show
    whether its driver is alive. Raises JobError if the run is complete; StoreError."""
    end = run.outbox.end()  # of a run that ended while MLflow was unreachable
    try:
        status = runs.run_status(run.mlflow) if end is None else end[0]
    except ServiceError:
        return ""
    if status == runs.FINISHED:
        raise JobError(
            f"{run.url}: got a run that is complete; there is nothing left to train. "
            "`rayception fork` it, with more epochs or another recipe."
        )
    return status


def resume_run(run: Run, tags: dict[str, str], log: Log) -> None:
    """Reopens a run in MLflow, or logs that MLflow is unreachable. Raises StoreError."""
    run.outbox.clear_end()
    try:
        runs.reopen_run(run.mlflow, tags=tags)
    except ServiceError as error:
        log(f"note: {error}")
        log("going on; what MLflow should receive is kept in storage until it answers")


def abort_run(run: Run, status: str, tags: dict[str, str]) -> None:
    """Ends an incomplete run in MLflow, FAILED or KILLED, with plots of what it did.

    The status is set whatever else fails: unreachable storage may be what ended the run. While
    MLflow is unreachable, the outbox keeps it. Raises StoreError if storage is unreachable as well.
    """
    with contextlib.suppress(StoreError):
        tags = tags | checkpoint_tags(run.store, run.url)
    try:
        runs.close_run(run.mlflow, status, tags)
    except ServiceError:
        run.outbox.set_end(status, tags)
        return
    # Imports matplotlib: only now, because whoever stops a run may not wait long.
    from orchestration.driver.run_end import log_plots

    with contextlib.suppress(ServiceError, StoreError):
        log_plots(run)


def _tags_of(job: Job, plan: Plan, train: Manifest, run_url: str) -> dict[str, str]:
    """The tags of a new run in MLflow. job: on the accelerator that it got."""
    tags = {
        runs.STORAGE_TAG: run_url,
        "rayception.world_size": str(plan.world_size),
        "rayception.accelerator": str(job.cluster.accelerator),
        "rayception.train_fingerprint": train.fingerprint,
        "rayception.parameters": str(plan.parameters),
        "rayception.image": job.cluster.environment.image or "",
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"rayception run {job.name}",
        runs.NOTE_TAG: _note(job, plan, run_url),
    }
    return {key: value for key, value in tags.items() if value} | submission_tags()


def _note(job: Job, plan: Plan, run_url: str) -> str:
    """The run's description, in Markdown."""
    model = job.model
    lines = [
        f"**{model.name}**, {plan.parameters / 1e6:.2f} M parameters at {model.input_size} px, on "
        f"{plan.train_samples:,} images of {model.num_classes:,} classes for "
        f"{job.schedule.epochs:g} epochs ({plan.total_steps:,} steps of "
        f"{plan.global_batch_size:,}).",
        f"{plan.world_size} ranks on {job.cluster.accelerator} x {plan.num_nodes}.",
        f"Checkpoints: `{run_url}`",
        f"Resume it: `rayception resume {shlex.quote(run_url)}`",
    ]
    submission = submission_tags()
    if PAGE_TAG in submission:
        lines.append(f"Submitted as [{submission[SUBMISSION_TAG]}]({submission[PAGE_TAG]})")
    return "\n\n".join(lines)


def _dataset(job: Job, context: str, url: str, manifest: Manifest) -> runs.Dataset:
    profile = {
        "num_samples": manifest.num_samples,
        "num_shards": len(manifest.shards),
        "num_classes": len(manifest.classes),
    }
    name, digest = f"{job.name} {context}", manifest.fingerprint[:36]
    return runs.Dataset(name=name, digest=digest, source=url, context=context, profile=profile)


def _reproduce_script(run_url: str, code: Checkout) -> str:
    """The commands that repeat the run from its artifacts."""
    checkout = f"git checkout {code.commit}\n" if code.commit else ""
    patch = "git apply code.diff\n" if code.diff else ""
    return (
        f"# Repeats the run in {run_url} with the files beside this one.\n"
        f"{checkout}{patch}make venv\n.venv/bin/rayception run job.yaml\n"
    )


def submission_tags() -> dict[str, str]:
    """If this process is a Ray job submission: its id, and its page in Ray's dashboard if the
    sender named the dashboard's URL. Otherwise empty."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))  # of the Jobs API
    submission = (config.get("metadata") or {}).get("job_submission_id")
    if submission is None:
        return {}
    tags = {SUBMISSION_TAG: str(submission)}
    if DASHBOARD_VARIABLE in os.environ:
        tags[PAGE_TAG] = f"{os.environ[DASHBOARD_VARIABLE].rstrip('/')}/#/jobs/{submission}"
    return tags
