"""What travels to a cluster: a folder made for it, and what Ray is to give the job's processes.

The files of this checkout that git does not ignore, without tests, and the resolved job. No secret
is among them: the cluster's own environment has the credentials.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestration.cluster.checkout import CHECKOUT_FILE, read_checkout
from orchestration.cluster.versions import DASHBOARD, VERSIONS, versions
from orchestration.errors import JobError
from orchestration.job.cluster import Environment
from orchestration.job.job import Job
from orchestration.job.load import to_yaml
from orchestration.job.rules import without_secrets
from orchestration.stack.state import ROOT

JOB_FILE = "submitted-job.yaml"
MAX_UPLOAD_BYTES = 50 * 2**20  # the checkout is under one; what is above is not meant


def runtime_env(environment: Environment, address: str) -> dict[str, Any]:
    """What Ray is to give the job's processes besides the checkout. The versions of this laptop's
    Python, Ray and torch go along, for preflight to compare, and the URL under which it reaches
    the dashboard, for links: a submission that sends others hands on the one that it was given."""
    reached = os.environ.get(DASHBOARD, without_secrets(address))
    said = {VERSIONS: json.dumps(versions()), DASHBOARD: reached}
    given: dict[str, Any] = {"env_vars": {**environment.variables, **said}}
    if environment.pip:
        given["pip"] = list(environment.pip)
    return given


@contextlib.contextmanager
def stage_working_dir(jobs: Mapping[str, Job]) -> Iterator[Path]:
    """A folder with what travels, jobs by file name among it, for the block.

    Raises JobError: not a git checkout, too large.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        raise JobError(
            f"{ROOT}: got no git checkout; what travels is what git does not ignore. Clone "
            "rayception with git, and submit from there."
        )
    names = [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name]
    files = [name for name in names if (ROOT / name).is_file() and name.parts[0] != "tests"]
    size = sum((ROOT / name).stat().st_size for name in files)
    if size > MAX_UPLOAD_BYTES:
        largest = max(files, key=lambda name: (ROOT / name).stat().st_size)
        raise JobError(
            f"{ROOT}: got {size / 2**20:.0f} MiB to upload; at most "
            f"{MAX_UPLOAD_BYTES // 2**20} MiB travel, and {largest} is the largest file. Add it to "
            ".gitignore, or take it out."
        )
    folder = Path(tempfile.mkdtemp(prefix="rayception-submit-"))
    try:
        for file in files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target)
        (folder / CHECKOUT_FILE).write_text(read_checkout().to_json())
        for name, job in jobs.items():
            (folder / name).write_text(to_yaml(job))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
