"""The code that a run was made with: the checkout's commit and its local changes."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass

from orchestration.job.cluster import SECRET_PATTERN
from orchestration.stack.state import ROOT

CHECKOUT_FILE = "submitted-checkout.json"  # in a submitted working directory, which has no .git
MAX_DIFF_BYTES = 500_000
MIN_SECRET_CHARS = 6  # a shorter value would occur in any text


@dataclass(frozen=True, slots=True)
class Checkout:
    """commit: "" without git. diff: of the tracked files, against the commit."""

    commit: str
    diff: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_checkout() -> Checkout:
    """This checkout, or the one that this working directory was submitted from."""
    submitted = ROOT / CHECKOUT_FILE
    if submitted.is_file():
        return Checkout(**json.loads(submitted.read_text()))
    commit = _git("rev-parse", "HEAD").strip()
    diff = _git("diff", "HEAD") if commit else ""
    size_bytes = len(diff.encode())
    if size_bytes > MAX_DIFF_BYTES:
        diff = f"(a diff of {size_bytes} bytes is not kept)\n"
    return Checkout(commit, _redact_secrets(diff))


def _redact_secrets(text: str) -> str:
    """Hides the values of environment variables whose names look like a secret's."""
    for name, value in os.environ.items():
        if SECRET_PATTERN.search(name) and len(value) >= MIN_SECRET_CHARS:
            text = text.replace(value, "***")
    return text


def _git(*arguments: str) -> str:
    """The command's output; "" if it fails."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True,
            errors="replace",
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
