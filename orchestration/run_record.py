"""What a run says of itself in its own storage, beside its checkpoints: run.json.

With it a checkpoint is enough to build its network, name its classes and find its MLflow run.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from datasets.errors import DataError
from datasets.store import Store
from orchestration.errors import JobError

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
