"""What a run says of itself in MLflow when it begins: params, tags, a description, its data."""

import json
import logging
import os
import shlex
from typing import Any

from datasets.manifest import Manifest
from datasets.store import Store
from orchestration.checkout import Checkout
from orchestration.conclude import send_file
from orchestration.errors import TOLD_IN_ONE_LINE
from orchestration.gallery import of_samples
from orchestration.job import Job
from orchestration.load import flatten, to_dict
from orchestration.plan import Plan
from orchestration.tracking.outbox import Outbox
from orchestration.tracking.runs import NOTE_TAG, STORAGE_TAG, Dataset, RunRef
from orchestration.versions import DASHBOARD

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


def params_of(job: Job, plan: Plan) -> dict[str, Any]:
    """The flattened job, and what was derived from it as `plan.NAME`."""
    return flatten(to_dict(job)) | {f"plan.{name}": getattr(plan, name) for name in PLANNED}


def tags_of(job: Job, plan: Plan, train: Manifest, run_url: str, code: Checkout) -> dict[str, str]:
    """What finds and explains a run in MLflow's table."""
    tags = {
        STORAGE_TAG: run_url,
        "rayception.world_size": str(plan.world_size),
        "rayception.accelerator": str(job.cluster.accelerator),
        "rayception.train_fingerprint": train.fingerprint,
        "rayception.parameters": str(plan.parameters),
        "rayception.image": job.cluster.environment.image or "",
        "mlflow.source.type": "JOB",
        "mlflow.source.name": f"rayception run {job.name}",
        "mlflow.source.git.commit": code.commit,
        "rayception.dirty": "yes" if code.diff else "no",
        NOTE_TAG: note_of(job, plan, run_url),
    }
    return {key: value for key, value in tags.items() if value} | submission_tags()


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
    if submission:
        lines.append(f"Submission [{submission[SUBMISSION_TAG]}]({submission[PAGE_TAG]})")
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


def send_samples(
    job: Job, plan: Plan, store: Store, train: Manifest, run: RunRef, run_url: str
) -> None:
    """A picture of the first training samples, drawn beside training; nothing waits for it."""
    try:
        picture = of_samples(job, plan, store, train)
        send_file(run, Outbox(store, run_url), "pictures/training-samples.png", picture)
    except TOLD_IN_ONE_LINE as error:  # training meets it too, and says it
        logger.warning("no picture of training samples: %s", error)


def submission_tags() -> dict[str, str]:
    """Ray's id of the submission that this process is, and its page in Ray's dashboard; nothing
    where it was not submitted. Ray's Jobs API says the id in a variable of its own."""
    try:
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return {}
    submission = (config.get("metadata") or {}).get("job_submission_id")
    if submission is None or DASHBOARD not in os.environ:
        return {}
    page = f"{os.environ[DASHBOARD].rstrip('/')}/#/jobs/{submission}"
    return {SUBMISSION_TAG: submission, PAGE_TAG: page}
