"""What must hold before training starts: said in seconds, by the error law."""

import importlib.util
from pathlib import Path

from datasets.manifest import Manifest, index_url, load_manifest
from datasets.pack import pack
from datasets.sources import digits
from datasets.store import Store
from orchestration.errors import JobError, ServiceError
from orchestration.job import Job
from orchestration.local import Say
from orchestration.stack import ROOT

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


def prepare_data(job: Job, store: Store, say: Say) -> tuple[Manifest, Manifest]:
    """The manifests of both splits, packed from `data.source` first where they are not there.

    Raises DataError (no shards, no index, damaged), StoreError, JobError (classes differ).
    """
    for split in ("train", "val"):
        url = getattr(job.data, split)
        if job.data.source and not store.exists(index_url(url)):
            samples, classes = digits(split, seed=0)
            manifest = pack(
                samples, store, url, classes=classes, samples_per_shard=SAMPLES_PER_SHARD
            )
            say(f"packed {manifest.num_samples} samples into {url}")
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
