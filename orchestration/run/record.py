"""What a run says of itself in its own storage, beside its checkpoints: run.json.

With it a checkpoint is enough to build its network, name its classes and find its MLflow run.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from datasets.errors import DataError
from datasets.storage.store import Store
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import flatten, from_dict, to_dict

FORMAT = 1
RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """job: as load.to_dict wrote it; classes: names by number."""

    name: str
    job: dict[str, Any]
    classes: list[str]
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumedRun:
    """A run that is to go on: where it lies, what it says of itself, and which fields of its job
    are others now (as MLflow tags)."""

    url: str
    record: RunRecord
    changed: dict[str, str]


def save_record(store: Store, run_url: str, record: RunRecord) -> None:
    """Raises StoreError where the storage refuses."""
    values = {"format": FORMAT, **asdict(record)}
    store.write(f"{run_url}/{RUN_FILE}", json.dumps(values, indent=1).encode())


def load_record(store: Store, run_url: str) -> RunRecord:
    """Raises JobError where `run_url` holds no run, or one of another version; StoreError."""
    url = f"{run_url}/{RUN_FILE}"
    try:
        values: dict[str, Any] = json.loads(store.read(url))
        version = values.pop("format")
        if version != FORMAT:
            raise JobError(
                f"{url}: got format {version}; this version reads {FORMAT}. Use the rayception "
                "that wrote it."
            )
        return RunRecord(**values)
    except (DataError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{run_url}: got no run there ({type(error).__name__}); a run's folder holds "
            f"{RUN_FILE} and its checkpoints. Name the folder that the run's panel shows."
        ) from error


# What a run may change when it goes on: where and how fast it is computed, never what.
FREE = (
    "cluster.",
    "storage.",
    "loss.not_finite",
    "tracking.log_every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "data.loader_workers",
    "data.cache_gib",
    "data.cache_folder",
    "data.max_damaged",
)
# What a fork must keep: its state's shape, and its place in the data.
KEPT = (
    "seed",
    "data.train",
    "data.shuffle.",
    "data.global_batch_size",
    "data.micro_batch_size",
    "model.name",
    "model.num_classes",
    "model.width",
    "model.input_size",
    "model.side_head",
    "model.options.",
    "optim.name",
)


def check_resumed(before: Job, after: Job) -> dict[str, str]:
    """Fields that a run goes on with other values of, as text. Raises JobError for one that its
    result depends on."""
    changed = _changed(before, after)
    for key, (old, new) in changed.items():
        if not key.startswith(FREE):
            raise JobError(
                f"{key}: got {new}, but the run began with {old}; a run goes on to the result that "
                "it began with. Leave it as it was, or `rayception fork` the run."
            )
    return {key: str(new) for key, (_, new) in changed.items()}


def check_forked(before: Job, after: Job) -> None:
    """Raises JobError for a field that the checkpoint's state or place in the data depends on."""
    for key, (old, new) in _changed(before, after).items():
        if key.startswith(KEPT):
            raise JobError(
                f"{key}: got {new}, but the checkpoint was made with {old}; a fork takes over its "
                "state and its place in the data. Leave it, or begin anew with model.init_from."
            )


def find_resumed(store: Store, url: str, job: Job) -> ResumedRun:
    """The run at `url`, to go on with under `job`. Raises JobError: no run there, or a job that is
    not its own; StoreError."""
    record = load_record(store, url)
    changed = check_resumed(from_dict(record.job), job)
    tags = {f"rayception.now.{key}": value for key, value in changed.items()}
    return ResumedRun(url=url, record=record, changed=tags)


def _changed(before: Job, after: Job) -> dict[str, tuple[object, object]]:
    old, new = flatten(to_dict(before)), flatten(to_dict(after))
    return {key: (old[key], value) for key, value in new.items() if old[key] != value}
