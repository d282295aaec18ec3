"""Ray Jobs: a job leaves for a cluster, and is watched from afar.

What travels is a folder made for it: the files of this checkout that git does not ignore, and the
resolved job. No secret is among them: the cluster's own environment has the credentials. A token
that the cluster asks for is Ray's own business (RAY_AUTH_TOKEN, or ~/.ray/auth_token); further
headers come from RAY_JOB_HEADERS, as for Ray's own commands.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestration.errors import JobError, ServiceError, TrainingError
from orchestration.job import Job
from orchestration.job_places import Environment
from orchestration.load import to_yaml
from orchestration.stack import ROOT
from orchestration.versions import VERSIONS, versions

JOB_FILE = "submitted-job.yaml"
MAX_UPLOAD_BYTES = 50 * 2**20  # the checkout is under one; what is above is not meant
PROGRAM = ("python", "-m", "orchestration.cli")
ON_CLUSTER = "cluster.address=auto"  # how a job that was sent names the cluster that it is on
STOP_LIMIT_S = 120.0
POLL_S = 1.0
ENDED_WORDS = tuple(s.value for s in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED))
ERRAND = "rayception-errand"  # name of submissions that only ask something


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One job on a cluster. began_ms, ended_ms: Unix time, None where it has not."""

    id: str
    name: str
    status: str
    message: str
    began_ms: int | None
    ended_ms: int | None


logging.getLogger("ray").setLevel(logging.WARNING)  # what it uploads, file by file


class Cluster:
    """The Jobs API of one cluster. Raises ServiceError where it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._told():
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray would take before ours
            headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
            self._client = JobSubmissionClient(address, headers=headers)

    def submit(self, job: Job) -> str:
        """Sends the job; -> its submission id. Raises JobError where the checkout is too large."""
        return self.send(("run", JOB_FILE, ON_CLUSTER), name=job.name, job=job)

    def send(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        job: Job | None = None,
        environment: Environment | None = None,
    ) -> str:
        """Sends `rayception ARGUMENTS` to be run there, with the job as JOB_FILE; -> its submission
        id. Raises JobError where the checkout is too large; ServiceError."""
        submission = f"{name}-{secrets.token_hex(4)}"
        environment = environment or (job.cluster.environment if job is not None else Environment())
        with staged(job) as folder, self._told():
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join([*PROGRAM, *arguments]),
                    submission_id=submission,
                    runtime_env={"working_dir": str(folder), **runtime_env(environment)},
                    metadata={"rayception.name": name},
                )
            )

    def ask(self, arguments: Sequence[str], *, job: Job | None = None, limit_s: float) -> Any:
        """What `rayception ARGUMENTS --json` answers there.

        Raises what it raised, as an error of the same exit code; ServiceError: nothing for
        `limit_s`.
        """
        submission = self.send((*arguments, "--json"), name=ERRAND, job=job)
        deadline = time.monotonic() + limit_s
        while (found := self.find(submission)).status not in ENDED_WORDS:
            if time.monotonic() > deadline:
                with self._told():
                    self._client.stop_job(submission)
                raise ServiceError(
                    f"cluster.address: got {self.address}, no answer to `{arguments[0]}` within "
                    f"{limit_s:.0f} s ({found.message}). See its head's load and logs."
                )
            time.sleep(0.3)
        lines = [line for line in self.logs(submission).splitlines() if line.strip()]
        if found.status == "SUCCEEDED":
            begin = max(i for i, line in enumerate(lines) if line in ("{", "["))
            return json.loads("\n".join(lines[begin:]))
        code = re.search(r"exit code (\d+)", found.message)
        kinds = {one.exit_code: one for one in (JobError, ServiceError, TrainingError)}
        raise kinds.get(int(code[1]) if code else 0, ServiceError)(lines[-1] if lines else "")

    def find(self, submission: str) -> Submission:
        """Raises JobError where the cluster has no such submission."""
        for one in self._all():
            if one.id == submission:
                return one
        raise JobError(
            f"SUBMISSION: got {submission!r}; {self.address} has none of that name. "
            "`rayception list` names them."
        )

    def jobs(self) -> list[Submission]:
        """The jobs that this program sent, the newest first."""
        return [one for one in self._all() if one.name != ERRAND]

    def _all(self) -> list[Submission]:
        with self._told():
            found = self._client.list_jobs()
        ours = [one for one in found if (one.metadata or {}).get("rayception.name")]
        made = [
            Submission(
                id=one.submission_id,
                name=one.metadata["rayception.name"],
                status=str(one.status.value),
                message=" ".join((one.message or "").split())[:500],
                began_ms=one.start_time,
                ended_ms=one.end_time,
            )
            for one in ours
        ]
        return sorted(made, key=lambda one: -(one.began_ms or 0))

    def logs(self, submission: str) -> str:
        """What the driver has printed so far."""
        self.find(submission)
        with self._told():
            return str(self._client.get_job_logs(submission))

    def follow(self, submission: str) -> Iterator[str]:
        """What the driver prints, line by line, until it ends."""
        shown = 0
        while True:
            # Asked before the log is read: what was printed before the end is not missed.
            status = self.find(submission).status
            text = self.logs(submission)
            whole = len(text) if status in ENDED_WORDS else text.rfind("\n") + 1
            yield from text[shown:whole].splitlines()
            shown = max(shown, whole)
            if status in ENDED_WORDS:
                return
            time.sleep(POLL_S)

    def stop(self, submission: str) -> Submission:
        """Interrupts the driver and waits until it has ended, for two minutes."""
        self.find(submission)
        with self._told():
            self._client.stop_job(submission)
        deadline = time.monotonic() + STOP_LIMIT_S
        while True:
            found = self.find(submission)
            if found.status in ENDED_WORDS:
                return found
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{submission}: got {found.status} still, {STOP_LIMIT_S:.0f} s after it was "
                    "told to stop. See its logs; Ray kills what does not end."
                )
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (RayError, RuntimeError, OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ServiceError(
                f"cluster.address: got {self.address}; its Jobs API did not answer or refused "
                f"({first}). Name the dashboard's URL, such as http://head:8265, and set "
                "RAY_AUTH_TOKEN where it asks for a token."
            ) from error


def runtime_env(environment: Environment) -> dict[str, Any]:
    """What Ray is to give the job's processes. The variables of this laptop's Python, Ray and torch
    go along, for preflight to compare."""
    given: dict[str, Any] = {
        "env_vars": {**environment.variables, VERSIONS: json.dumps(versions())}
    }
    if environment.pip:
        given["pip"] = list(environment.pip)
    if environment.image is not None:
        given["image_uri"] = environment.image
    return given


@contextlib.contextmanager
def staged(job: Job | None) -> Iterator[Path]:
    """A folder with what travels, for the block. Raises JobError: not a git checkout, too large."""
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
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        if job is not None:
            (folder / JOB_FILE).write_text(to_yaml(job))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe(one: Submission) -> dict[str, Any]:
    """A submission in words."""
    began, ended = one.began_ms, one.ended_ms
    seconds = None if began is None else ((ended or int(time.time() * 1000)) - began) / 1000
    return {
        "submission": one.id,
        "job": one.name,
        "status": one.status,
        "for": "-" if seconds is None else f"{seconds:.0f} s",
        "said": one.message,
    }
