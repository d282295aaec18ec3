"""`run.json`: what identifies a run, beside its checkpoints in storage.

With it a checkpoint is enough to build its network, name its classes and find its MLflow run.
"""

from dataclasses import asdict, dataclass
from typing import Any

from datasets.errors import DataError
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store
from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import flatten, from_dict, to_dict

FORMAT = 1
RUN_FILE = "run.json"


# Fields that a resumed run may change: where and how fast it is computed, never its result. (The
# bits depend on cluster.reduction, and on CPUs on cluster.cpus_per_worker.)
RESUME_MAY_CHANGE = (
    "cluster.", "storage.", "loss.not_finite", "tracking.log_every_steps",
    "checkpoint.every_steps", "checkpoint.keep", "data.loader_workers", "data.cache_gib",
    "data.cache_folder", "data.max_damaged", "data.verify",
)  # fmt: skip
# Fields that a fork must keep: the shape of its state, and its position in the data.
FORK_MUST_KEEP = (
    "seed", "data.train", "data.shuffle.", "data.global_batch_size", "data.micro_batch_size",
    "model.name", "model.num_classes", "model.width", "model.input_size", "model.side_head",
    "model.options.", "optim.name",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """job: as load.to_dict writes it. classes: names by number."""

    name: str
    job: dict[str, Any]
    classes: list[str]
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumedRun:
    """A run to resume. changed: the job's fields that differ from its record, as MLflow tags."""

    url: str
    record: RunRecord
    changed: dict[str, str]


def save_record(store: Store, run_url: str, record: RunRecord) -> None:
    """Raises StoreError."""
    values = {"format": FORMAT, **asdict(record)}
    store.write(f"{run_url}/{RUN_FILE}", encode_json(values, indent=1))


def load_record(store: Store, run_url: str) -> RunRecord:
    """Raises JobError if `run_url` holds no run, one whose record is damaged, or one of another
    format; StoreError."""
    url = f"{run_url}/{RUN_FILE}"
    try:
        content = store.read(url)
    except DataError as error:
        raise JobError(
            f"{run_url}: got no run there; a run's folder holds {RUN_FILE} and its checkpoints. "
            "Name the folder that the run's panel shows."
        ) from error
    try:
        values: dict[str, Any] = decode_json(content)
        version = values.pop("format")
        if version != FORMAT:
            raise JobError(
                f"{url}: got format {version}; this version reads {FORMAT}. Use the rayception "
                "that wrote it."
            )
        return RunRecord(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(
            f"{url}: got {error} ({type(error).__name__}); the run's record is damaged. Restore "
            "the file from a copy; MLflow has the job as job.yaml."
        ) from error


def find_resumed(store: Store, url: str, job: Job) -> ResumedRun:
    """The run at `url`, to resume it as `job`. Raises JobError if there is no run, or if the job
    changes a field that its result depends on; StoreError."""
    record = load_record(store, url)
    before = from_dict(record.job)
    changes = _changes(before, job)
    fixed = {"cluster.reduction"}
    if not before.cluster.accelerator.is_gpu and not job.cluster.accelerator.is_gpu:
        fixed.add("cluster.cpus_per_worker")  # compute threads: each number rounds differently
    for key, (old, new) in changes.items():
        if key in fixed or not key.startswith(RESUME_MAY_CHANGE):
            raise JobError(
                f"{key}: got {new}, but the run began with {old}; a resumed run must come to the "
                "same result. Leave it as it was, or `rayception fork` the run."
            )
    tags = {f"rayception.now.{key}": str(new) for key, (_, new) in changes.items()}
    return ResumedRun(url=url, record=record, changed=tags)


def check_forked(before: Job, after: Job) -> None:
    """Raises JobError if a field changes that the checkpoint's state or position depends on."""
    for key, (old, new) in _changes(before, after).items():
        if key.startswith(FORK_MUST_KEEP):
            raise JobError(
                f"{key}: got {new}, but the checkpoint was made with {old}; a fork takes over its "
                "state and its position in the data. Leave it as it was, or start anew with "
                "model.init_from."
            )


def _changes(before: Job, after: Job) -> dict[str, tuple[object, object]]:
    """(old, new) by field."""
    old, new = flatten(to_dict(before)), flatten(to_dict(after))
    return {key: (old[key], value) for key, value in new.items() if old[key] != value}
