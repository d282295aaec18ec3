"""What must hold before training starts, checked within seconds.

`run_preflight` reports every problem at once, so that a person can fix them all in one go; the
driver runs it before it writes anything.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets.shards.manifest import Manifest, load_manifest
from datasets.shards.split_url import index_url
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.capacity import choose_accelerator, read_nodes
from orchestration.cluster.versions import VERSIONS_VARIABLE
from orchestration.errors import EXPECTED_ERRORS, JobError, ServiceError
from orchestration.job.job import Job
from orchestration.stack.local import Log
from orchestration.stack.state import PACKAGES, ROOT

SAMPLES_PER_SHARD = 128  # of a packed `data.source`


def check_imports() -> None:
    """Raises ServiceError unless our packages are imported from our root: another distribution is
    called `datasets` too."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or ROOT not in origin.parents:
            raise ServiceError(
                f"{name}: got {origin}; the package of rayception lies below {ROOT}. Uninstall "
                "the distribution that shadows it, or run in rayception's own environment."
            )


def prepare_data(job: Job, store: Store, log: Log) -> tuple[Manifest, Manifest]:
    """The manifests of the training and validation split. A split that does not exist yet is packed
    from `data.source`, if the job has one.

    Raises DataError (no shards, no index, damaged), StoreError, JobError (too many classes).
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
    train, val = (
        load_manifest(store, url, verify=job.data.verify) for url in (job.data.train, job.data.val)
    )
    for split, manifest in (("train", train), ("val", val)):
        if manifest.retimed and not manifest.has_checksums:
            log(
                f"note: data.{split}: got {len(manifest.retimed)} shards with other modification "
                f"times than their index says, such as {manifest.retimed[0]}; they were copied or "
                "replaced. If they were replaced, index the split again."
            )
        if manifest.num_classes > job.model.num_classes:
            raise JobError(
                f"model.num_classes: got {job.model.num_classes}, but data.{split} has "
                f"{manifest.num_classes} classes; every label needs an output. "
                f"Write {manifest.num_classes}."
            )
    return train, val


def check_storage(store: Store, run_url: str) -> None:
    """Raises StoreError unless the run's storage exists and is writable.

    Reads first: some S3 servers create a missing bucket on the first write to it.
    """
    store.exists(f"{run_url}/.writable")
    store.write(f"{run_url}/.writable", b"")
    store.delete(f"{run_url}/.writable")


def check_init(job: Job, store: Store) -> None:
    """Raises JobError if the file of pretrained weights is missing; StoreError."""
    url = job.model.init_from
    if url is not None and not store.exists(url):
        raise JobError(
            f"model.init_from: got {url}, and no such file; it must exist. Correct the URL."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of one check. problem: the error that a run would fail with, if any."""

    name: str
    message: str
    problem: Exception | None = None


def run_preflight(
    job: Job, store: Store, config: StoreConfig, tracking_uri: str
) -> tuple[list[Check], list[str]]:
    """Checks a job on the connected cluster, without taking a GPU; -> (the results, notes)."""
    import ray

    from orchestration.cluster import node_probe  # imports ray too

    def describe_capacity() -> str:
        best = choose_accelerator(job, read_nodes())
        fits = "fits now" if best.now >= best.needed else "must wait"
        return f"{best.accelerator}: room for {best.now} ranks now, {best.total} in total; {fits}"

    location = job.checkpoint.storage
    check_writes = partial(check_storage, store, f"{location.rstrip('/')}/.preflight")
    check_weights = partial(check_init, job, store)
    storage = _check("storage", check_writes, f"{location} is writable")
    node_checks = node_probe.NodeChecks(
        store=config,
        splits=node_probe.existing_splits(job, store) if storage.problem is None else (),
        tracking_uri=tracking_uri,
        secrets=tuple(job.cluster.secrets),
    )
    reports = node_probe.probe_nodes(node_checks, [node for node in ray.nodes() if node["Alive"]])
    messages = {
        "nodes": f"{len(reports)} answer",
        "data": f"{', '.join(node_checks.splits) or 'to be packed'}: read on every node",
        "tracking": f"{tracking_uri} answers every node",
        "secrets": ", ".join(node_checks.secrets) or "none named",
    }
    submitter = json.loads(os.environ.get(VERSIONS_VARIABLE, "{}"))
    differences, notes = node_probe.compare_versions(reports, submitter)
    more = (node_probe.health_check_note(reports), node_probe.checksum_note(reports))
    notes += filter(None, more)
    checks = [
        _check("packages", check_imports, f"{', '.join(PACKAGES)} are rayception's"),
        _check("room", describe_capacity),
        storage,
        _check("weights", check_weights, job.model.init_from or "no pretrained weights"),
        *(
            _node_check(name, [r.problems[name] for r in reports if name in r.problems], message)
            for name, message in messages.items()
        ),
        _node_check("versions", differences[:1], "the same on every node"),
    ]
    return checks, notes


def _check(name: str, check: Callable[[], str | None], message: str = "") -> Check:
    """message: of success, if `check` returns none."""
    try:
        return Check(name=name, message=check() or message)
    except EXPECTED_ERRORS as error:
        return Check(name=name, message=str(error), problem=error)


def _node_check(name: str, problems: list[str], message: str) -> Check:
    """problems: one of each node that has one. message: of success."""
    if not problems:
        return Check(name=name, message=message)
    count = f" ({len(problems)} nodes report this.)" if len(problems) > 1 else ""
    problem = ServiceError(problems[0] + count)
    return Check(name=name, message=str(problem), problem=problem)
