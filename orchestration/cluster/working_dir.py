"""The checkout that this process runs from: its commit and local changes, and what of it is
uploaded with a submission, in which runtime environment.

Uploaded are its files that git does not ignore, without tests and those that hold secrets by their
names (redaction.py), and the resolved job. Credentials come from the cluster's own environment.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestration.cluster.redaction import is_secret_file, redact_diff
from orchestration.cluster.versions import DASHBOARD_VARIABLE, VERSIONS_VARIABLE, versions
from orchestration.errors import JobError
from orchestration.job.cluster import SECRET_PATTERN, Environment
from orchestration.job.job import Job
from orchestration.job.load import to_yaml
from orchestration.job.rules import redact_url
from orchestration.stack.state import ROOT

JOB_FILE = "submitted-job.yaml"
CHECKOUT_FILE = "submitted-checkout.json"  # in a submitted working directory, which has no .git
MAX_UPLOAD_BYTES = 50 * 2**20  # the checkout has less than one MiB: more is a mistake
MAX_DIFF_BYTES = 500_000
GIT_LIMIT_S = 60.0
MIN_SECRET_CHARS = 6  # a shorter value would occur in any text


@dataclass(frozen=True, slots=True)
class Checkout:
    """commit: "" without git. diff: of the tracked files, against the commit, without secrets."""

    commit: str
    diff: str


def read_checkout() -> Checkout:
    """This checkout, or the one that this working directory was submitted from."""
    submitted = ROOT / CHECKOUT_FILE
    if submitted.is_file():
        return Checkout(**json.loads(submitted.read_text()))
    commit = _git("rev-parse", "HEAD").decode().strip()
    if not commit:
        return Checkout("", "")
    changed = _names(_git("diff", "--no-renames", "--name-only", "-z", "HEAD"))
    left_out = [name for name in changed if is_secret_file(name)]
    diff = _git(
        "diff", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", ":/",
        *(f":(exclude,top,literal){name}" for name in left_out),
    )  # fmt: skip
    if len(diff) > MAX_DIFF_BYTES:
        return Checkout(commit, f"(a diff of {len(diff)} bytes is not kept)\n")
    text = redact_diff(diff.decode(errors="replace"), left_out)
    for name, value in os.environ.items():
        if SECRET_PATTERN.search(name) and len(value) >= MIN_SECRET_CHARS:
            text = text.replace(value, "***")
    return Checkout(commit, text)


def _names(listing: bytes) -> list[str]:
    """The paths in git's output of -z."""
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


def _git(*arguments: str) -> bytes:
    """The command's output; empty if it fails."""
    command = ["git", *arguments]
    try:
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, timeout=GIT_LIMIT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def runtime_env(environment: Environment, address: str) -> dict[str, Any]:
    """Ray's runtime environment of a submission, without its working directory. It has this
    machine's versions, which preflight compares, and the dashboard's URL as this machine reaches
    it, for links; a submission that submits others passes on its own."""
    variables = {
        **environment.variables,
        VERSIONS_VARIABLE: json.dumps(versions()),
        DASHBOARD_VARIABLE: os.environ.get(DASHBOARD_VARIABLE, redact_url(address)),
    }
    pip = {"pip": list(environment.pip)} if environment.pip else {}
    return {"env_vars": variables, **pip}


@contextlib.contextmanager
def stage_working_dir(jobs: Mapping[str, Job]) -> Iterator[Path]:
    """A temporary folder with the files to upload, for the block. jobs: by file name.

    Raises JobError outside a git checkout, and if the files are too large.
    """
    listing = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if not listing:
        raise JobError(
            f"{ROOT}: got no git checkout; what git does not ignore is uploaded. Clone "
            "rayception with git, and submit from there."
        )
    names = [Path(name) for name in _names(listing) if not is_secret_file(name)]
    files = [name for name in names if (ROOT / name).is_file() and name.parts[0] != "tests"]
    sizes_bytes = [(ROOT / name).stat().st_size for name in files]
    if sum(sizes_bytes) > MAX_UPLOAD_BYTES:
        _, largest = max(zip(sizes_bytes, files, strict=True))
        raise JobError(
            f"{ROOT}: got {sum(sizes_bytes) / 2**20:.0f} MiB to upload; at most "
            f"{MAX_UPLOAD_BYTES // 2**20} MiB are allowed, and {largest} is the largest file. Add "
            "it to .gitignore, or take it out."
        )
    prefix = "rayception-submit-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        (folder / CHECKOUT_FILE).write_text(json.dumps(asdict(read_checkout())))
        for job_file, job in jobs.items():
            (folder / job_file).write_text(to_yaml(job))
        yield folder
