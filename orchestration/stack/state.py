"""The state of an embedded stack: its ports, processes and secrets, in `stack.json`."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.errors import ServiceError
from orchestration.stack.processes import ProcessId, find_process
from orchestration.stack.services import LOOPBACK, Secrets

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestration", "inception", "datasets")
HOME_VARIABLE = "RAYCEPTION_HOME"
SERVICES = ("s3", "mlflow", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """The content of `stack.json` (mode 0600). kept: runs until `stack down`. processes: by part.
    ray_uses_own_s3: Ray has the embedded store's credentials, not those of whoever started it."""

    folder: Path
    id: str
    secrets: Secrets
    kept: bool = False
    ports: Mapping[str, int]
    processes: Mapping[str, ProcessId]
    reaper: ProcessId | None = None
    ray_temp: str | None = None
    ray_uses_own_s3: bool = True

    @property
    def ray_address(self) -> str:
        return f"{LOOPBACK}:{self.ports['ray']}"

    def url(self, part: str) -> str:
        """Ray's is its dashboard's."""
        return f"http://{LOOPBACK}:{self.ports['dashboard' if part == 'ray' else part]}"

    def is_up(self, part: str) -> bool:
        return find_process(self.processes.get(part)) is not None

    def is_any_up(self) -> bool:
        return any(self.is_up(part) for part in SERVICES)


def stack_folder() -> Path:
    """RAYCEPTION_HOME, or .rayception in the checkout."""
    return Path(os.environ.get(HOME_VARIABLE) or ROOT / ".rayception").resolve()


def load_stack(folder: Path) -> Stack | None:
    """The folder's stack, running or not; None if there never was one. Raises ServiceError."""
    try:
        values = json.loads((folder / "stack.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise ServiceError(
            f"{folder / 'stack.json'}: got {error}; the stack's state is JSON. Move the file away: "
            "the data beside it stay, under new credentials."
        ) from error
    values["secrets"].setdefault("mlflow_token", "")  # an earlier version's MLflow had none
    values["secrets"] = Secrets(**values["secrets"])
    values["processes"] = {part: tuple(entry) for part, entry in values["processes"].items()}
    values["reaper"] = tuple(values["reaper"]) if values["reaper"] else None
    return Stack(folder=folder, **values)


def renew_token(stack: Stack) -> Stack:
    """Before a start: what has learned MLflow's token, such as another user's process that got the
    port of a stopped server, does not have the new one's."""
    token = secrets.token_hex(32)
    return replace(stack, secrets=replace(stack.secrets, mlflow_token=token))


def new_stack(folder: Path) -> Stack:
    return Stack(
        folder=folder,
        id=secrets.token_hex(8),
        secrets=Secrets(
            access_key=secrets.token_hex(10),
            secret_key=secrets.token_hex(20),
            ray_token=secrets.token_hex(32),
            mlflow_token=secrets.token_hex(32),
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
