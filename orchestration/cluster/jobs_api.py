"""Ray Jobs: a job leaves for a cluster, and is watched from afar.

A token that the cluster asks for is Ray's own business (RAY_AUTH_TOKEN, or ~/.ray/auth_token);
further headers come from RAY_JOB_HEADERS, as for Ray's own commands.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from orchestration.cluster.versions import ON_CLUSTER
from orchestration.cluster.working_dir import JOB_FILE, runtime_env, stage_working_dir
from orchestration.errors import JobError, RayceptionError, ServiceError, TrainingError
from orchestration.job.cluster import Environment
from orchestration.job.job import Job

PROGRAM = ("python", "-m", "orchestration.cli")
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


for _name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # what it uploads, file by file
    logging.getLogger(_name).setLevel(logging.WARNING)


class JobsClient:
    """The Jobs API of one cluster. Raises ServiceError where it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._told():
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray would take before ours
            headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
            self._client = JobSubmissionClient(address, headers=headers)

    def submit(self, job: Job, *, name: str | None = None) -> str:
        """Sends the job, under a run's name if it is to have one; -> its submission id."""
        named = () if name is None else ("--name", name)
        return self.send(
            ("run", JOB_FILE, ON_CLUSTER, *named),
            name=job.name,
            jobs={JOB_FILE: job},
            environment=job.cluster.environment,
        )

    def send(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        jobs: Mapping[str, Job] | None = None,
        environment: Environment | None = None,
        parcel: str | None = None,
    ) -> str:
        """Sends `rayception ARGUMENTS` to be run there, with jobs by file name; -> its submission
        id. parcel: the URI of a checkout that the cluster has already.

        Raises JobError where the checkout is too large; ServiceError.
        """
        submission = f"{name}-{secrets.token_hex(4)}"
        with contextlib.ExitStack() as held:
            if parcel is None:
                parcel = str(held.enter_context(stage_working_dir(jobs or {})))
            held.enter_context(self._told())
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join([*PROGRAM, *arguments]),
                    submission_id=submission,
                    runtime_env={
                        "working_dir": parcel,
                        **runtime_env(environment or Environment(), self.address),
                    },
                    metadata={"rayception.name": name},
                )
            )

    def ask(self, arguments: Sequence[str], *, job: Job | None = None, limit_s: float) -> Any:
        """What `rayception ARGUMENTS --json` answers there.

        Raises what it raised, as an error of the same exit code; ServiceError: nothing for
        `limit_s`.
        """
        submission = self.send(
            (*arguments, "--json"),
            name=ERRAND,
            jobs=None if job is None else {JOB_FILE: job},
            environment=None if job is None else job.cluster.environment,
        )
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
        raise _error_of(found)(lines[-1] if lines else f"{submission}: {found.status}")

    def check_end(self, submission: str) -> None:
        """Raises what ended a submission, as an error of its exit code; its own words stand in its
        log."""
        found = self.find(submission)
        if found.status != "SUCCEEDED":
            raise _error_of(found)(
                f"{submission}: got {found.status}; its own words are the last of its log "
                f"(`rayception logs {submission}`). Mend what they say, and submit it again."
            )

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

    def rank_logs(self, submission: str, rank: int) -> str:
        """What the last process of a rank has printed. Raises JobError where there is none."""
        self.find(submission)
        runs = self._get("/api/train/v2/runs/v1").json()["train_runs"]
        mine = [
            run for run in runs if (run.get("job_details") or {}).get("submission_id") == submission
        ]
        for run in sorted(mine, key=lambda one: -int(one["start_time_ns"])):
            for worker in (run["attempts"] or [{"workers": []}])[-1]["workers"]:
                if worker["world_rank"] == rank:
                    return "".join(self._worker_log(worker, suffix) for suffix in ("out", "err"))
        raise JobError(
            f"--rank: got {rank}; {submission} has started no such rank. Ranks count from 0; see "
            "`rayception logs` for what the driver says."
        )

    def _worker_log(self, worker: dict[str, Any], suffix: str) -> str:
        query = {"node_id": worker["node_id"], "actor_id": worker["actor_id"], "suffix": suffix}
        answer = self._get(f"/api/v0/logs/file?{urlencode({**query, 'lines': -1})}")
        text: str = answer.text
        return text.removeprefix("1")  # the API's word that it went well

    def _get(self, path: str) -> Any:
        with self._told():
            answer = self._client._do_request("GET", path)  # with the cluster's token and headers
            if answer.status_code != 200:
                raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
            return answer

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


def _error_of(found: Submission) -> type[RayceptionError]:
    code = re.search(r"exit code (\d+)", found.message)
    kinds = {one.exit_code: one for one in (JobError, ServiceError, TrainingError)}
    return kinds.get(int(code[1]) if code else 0, TrainingError)


def describe_submission(one: Submission) -> dict[str, Any]:
    """A submission in words."""
    began, ended = one.began_ms, one.ended_ms
    seconds = None if began is None else ((ended or int(time.time() * 1000)) - began) / 1000
    return {
        "submission": one.id,
        "job": one.name,
        "status": one.status,
        "for": "-" if seconds is None else f"{seconds:.0f} s",
        "said": one.message[-160:],
    }
