"""Which rayception a run was made with: the checkout's commit, and what it has beside it."""

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestration.job.cluster import SECRET_NAME
from orchestration.stack.state import ROOT

CHECKOUT_FILE = "submitted-checkout.json"  # in what travels to a cluster, which has no git
MAX_DIFF_BYTES = 500_000
MIN_SECRET = 6  # letters: a shorter value would be found in any text


@dataclass(frozen=True, slots=True)
class Checkout:
    """commit: "" where there is no git; diff: of the files that git knows, against it."""

    commit: str
    diff: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read_checkout(root: Path = ROOT) -> Checkout:
    """This checkout's, or what a laptop said of its own when it sent it here."""
    sent = root / CHECKOUT_FILE
    if sent.is_file():
        return Checkout(**json.loads(sent.read_text()))
    commit = _git(root, "rev-parse", "HEAD").strip()
    diff = _git(root, "diff", "HEAD") if commit else ""
    if len(diff.encode()) > MAX_DIFF_BYTES:
        diff = f"(a diff of {len(diff.encode())} bytes is not kept)\n"
    return Checkout(commit, without_values(diff))


def without_values(text: str) -> str:
    """The text without the values of environment variables whose names speak of a secret."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET:
            text = text.replace(value, "***")
    return text


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=False,
            errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
