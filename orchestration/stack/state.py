"""What the embedded stack is: its ports, processes and secrets, in one `stack.json` (mode 0600)."""

import json
import os
import secrets as random_secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import ServiceError
from orchestration.stack.processes import Who, find_process
from orchestration.stack.services import LOOPBACK, Secrets

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("s3", "mlflow", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """What `stack.json` holds (mode 0600). `processes`: part -> (pid, start time)."""

    folder: Path
    id: str
    secrets: Secrets
    kept: bool = False
    ports: Mapping[str, int]
    processes: Mapping[str, Who]
    reaper: Who | None = None
    ray_temp: str | None = None
    # Whether Ray was started with the embedded store's credentials or with its starter's.
    ray_uses_own_s3: bool = True

    @property
    def s3_url(self) -> str:
        return self.url("s3")

    @property
    def mlflow_url(self) -> str:
        return self.url("mlflow")

    @property
    def ray_address(self) -> str:
        return f"{LOOPBACK}:{self.ports['ray']}"

    def url(self, part: str) -> str:
        """Where a person or a client reaches a part; Ray's is its dashboard's."""
        return f"http://{LOOPBACK}:{self.ports['dashboard' if part == 'ray' else part]}"

    def is_up(self, part: str) -> bool:
        return find_process(self.processes.get(part)) is not None

    def is_any_up(self) -> bool:
        return any(self.is_up(part) for part in PARTS)


def stack_folder() -> Path:
    """Where the embedded stack keeps its data: RAYCEPTION_HOME, or .rayception in the checkout."""
    return Path(os.environ.get("RAYCEPTION_HOME") or ROOT / ".rayception").resolve()


def load_stack(folder: Path) -> Stack | None:
    """The stack that this folder knows, running or not."""
    try:
        values = json.loads((folder / "stack.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise ServiceError(
            f"{folder / 'stack.json'}: got {error}; the stack's state is JSON. Move the file away: "
            "the data beside it stay, under new credentials."
        ) from error
    values["secrets"] = Secrets(**values["secrets"])
    values["processes"] = {part: tuple(who) for part, who in values["processes"].items()}
    values["reaper"] = tuple(values["reaper"]) if values["reaper"] else None
    return Stack(folder=folder, **values)


def new_stack(folder: Path) -> Stack:
    return Stack(
        folder=folder,
        id=random_secrets.token_hex(8),
        secrets=Secrets(
            access_key=random_secrets.token_hex(10),
            secret_key=random_secrets.token_hex(20),
            ray_token=random_secrets.token_hex(32),
        ),
        ports={},
        processes={},
    )


def save_stack(stack: Stack) -> None:
    values: dict[str, Any] = asdict(stack)
    del values["folder"]
    target = stack.folder / "stack.json"
    temporary = target.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(values, file)
    temporary.replace(target)
