"""What must hold before training starts: said in seconds, by the error law.

`look_before` asks everything at once, so that a person mends all of it in one go; `drive` asks the
same before it writes anything.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets.shards.manifest import Manifest, index_url, load_manifest
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.versions import VERSIONS
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError
from orchestration.job.job import Job
from orchestration.stack.local import Log
from orchestration.stack.state import ROOT

PACKAGES = ("orchestration", "inception", "datasets")
SAMPLES_PER_SHARD = 128  # of a packed `data.source`


def check_imports() -> None:
    """Our package names must resolve below our root: another distribution is called `datasets`."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or ROOT not in origin.parents:
            raise ServiceError(
                f"{name}: got {origin}; the package of rayception lies below {ROOT}. Uninstall "
                "the distribution that shadows it, or run in rayception's own environment."
            )


def prepare_data(job: Job, store: Store, log: Log) -> tuple[Manifest, Manifest]:
    """The manifests of both splits, packed from `data.source` first where they are not there.

    Raises DataError (no shards, no index, damaged), StoreError, JobError (classes differ).
    """
    for split in ("train", "val"):
        url = getattr(job.data, split)
        if job.data.source and not store.exists(index_url(url)):
            from datasets.packing.pack import pack  # webdataset imports torch
            from datasets.packing.sources import digits

            samples, classes = digits(split, seed=0)
            manifest = pack(
                samples, store, url, classes=classes, samples_per_shard=SAMPLES_PER_SHARD
            )
            log(f"packed {manifest.num_samples} samples into {url}")
    train, val = load_manifest(store, job.data.train), load_manifest(store, job.data.val)
    for split, manifest in (("train", train), ("val", val)):
        if manifest.num_classes > job.model.num_classes:
            raise JobError(
                f"model.num_classes: got {job.model.num_classes}, but data.{split} has "
                f"{manifest.num_classes} classes; every label needs an output. "
                f"Write {manifest.num_classes}."
            )
    return train, val


def check_storage(store: Store, run_url: str) -> None:
    """The run's storage is there and takes a write. Raises StoreError.

    The look comes first: some S3 servers create a missing bucket on the first write to it.
    """
    store.exists(f"{run_url}/.writable")
    store.write(f"{run_url}/.writable", b"")
    store.delete(f"{run_url}/.writable")


def check_init(job: Job, store: Store) -> None:
    """A pretrained start's file is there. Raises JobError, StoreError."""
    url = job.model.init_from
    if url is not None and not store.exists(url):
        raise JobError(
            f"model.init_from: got {url}, and no such file; it must exist. Mend the URL."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at. problem: the error that a run would end with; None: all is well."""

    name: str
    said: str
    problem: Exception | None = None


def look_before(
    job: Job, store: Store, config: StoreConfig, tracking_uri: str
) -> tuple[list[Check], list[str]]:
    """(every check of the job on the connected cluster, what a person should know).

    Takes 20 s at most, a GPU never.
    """
    import ray

    from orchestration.cluster.capacity import choose_accelerator, read_nodes
    from orchestration.cluster.node_probe import (
        NodeQuestions,
        ask_nodes,
        differences,
        slow_to_notice,
        splits_to_ask,
    )

    def say_room() -> str:
        room = choose_accelerator(job, read_nodes())
        now = "now" if room.now >= job.cluster.min_nodes * room.accelerator.count else "not now"
        return f"{room.accelerator}: room for {room.now} ranks now, {room.ever} ever ({now})"

    def write() -> str:
        check_storage(store, f"{job.checkpoint.storage.rstrip('/')}/.preflight")
        return f"{job.checkpoint.storage} takes a write"

    def find_init() -> str:
        check_init(job, store)
        return job.model.init_from or "a new start"

    def find_imports() -> str:
        check_imports()
        return "orchestration, inception and datasets are ours"

    checks = [
        _check("packages", find_imports),
        _check("room", say_room),
        _check("storage", write),
        _check("weights", find_init),
    ]
    alive = [node for node in ray.nodes() if node["Alive"]]
    secrets = tuple(job.cluster.secrets)
    questions = NodeQuestions(
        store=config,
        splits=splits_to_ask(job, store) if checks[2].problem is None else (),
        tracking_uri=tracking_uri,
        secrets=secrets,
    )
    answers = ask_nodes(questions, alive)
    wrong, may_differ = differences(answers, json.loads(os.environ.get(VERSIONS, "{}")))
    for name, well in (
        ("nodes", f"{len(answers)} answer"),
        ("data", f"{', '.join(questions.splits) or 'to be packed'}: read on every node"),
        ("tracking", f"{tracking_uri} answers every node"),
        ("secrets", f"{', '.join(secrets) or 'none named'}"),
    ):
        problems = [one.problems[name] for one in answers if name in one.problems]
        more = f" ({len(problems)} nodes say so.)" if len(problems) > 1 else ""
        checks.append(
            Check(
                name=name,
                said=problems[0] + more if problems else well,
                problem=ServiceError(problems[0] + more) if problems else None,
            )
        )
    checks.append(
        Check(
            name="versions",
            said=wrong[0] if wrong else "the same on every node",
            problem=ServiceError(wrong[0]) if wrong else None,
        )
    )
    notes = [*may_differ, *([note] if (note := slow_to_notice(answers)) else [])]
    return checks, notes


def _check(name: str, read_nodes: Callable[[], str]) -> Check:
    try:
        return Check(name=name, said=read_nodes())
    except EXPECTED_ERRORS as error:
        return Check(name=name, said=str(error), problem=error)
