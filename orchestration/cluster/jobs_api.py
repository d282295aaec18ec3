"""Ray's Jobs API: submitting to a remote cluster, and watching submissions.

Ray itself sends a token that the cluster asks for (RAY_AUTH_TOKEN, or ~/.ray/auth_token); further
headers come from RAY_JOB_HEADERS, as for Ray's own commands.
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
POLL_S, QUERY_POLL_S = 1.0, 0.3
QUERY = "rayception-query"  # the name of submissions that only ask a question

for _name in ("ray", "ray.dashboard.modules.dashboard_sdk"):  # they list every uploaded file
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One job on a cluster. began_ms, ended_ms: Unix time; None: not yet."""

    id: str
    name: str
    status: str
    message: str
    began_ms: int | None
    ended_ms: int | None

    @property
    def has_ended(self) -> bool:
        return bool(JobStatus(self.status).is_terminal())


class JobsClient:
    """The Jobs API of one cluster. Raises ServiceError if it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._as_service_errors():
            os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it to the argument
            headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
            self._client = JobSubmissionClient(address, headers=headers)

    def submit(self, job: Job, *, name: str | None = None) -> str:
        """Submits a run of the job; -> its submission id. name: the run's, if it has one."""
        return self.submit_command(
            ("run", JOB_FILE, ON_CLUSTER, *(() if name is None else ("--name", name))),
            name=job.name,
            jobs={JOB_FILE: job},
            environment=job.cluster.environment,
        )

    def submit_command(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        jobs: Mapping[str, Job] | None = None,
        environment: Environment | None = None,
        working_dir: str | None = None,
    ) -> str:
        """Submits `rayception ARGUMENTS`; -> its submission id. jobs: by the name of the file that
        they get in the working directory. working_dir: the URI of one that the cluster has already.

        Raises JobError if the checkout is too large; ServiceError.
        """
        submission = f"{name}-{secrets.token_hex(4)}"
        environment_there = runtime_env(environment or Environment(), self.address)
        with contextlib.ExitStack() as contexts:
            if working_dir is None:
                working_dir = str(contexts.enter_context(stage_working_dir(jobs or {})))
            contexts.enter_context(self._as_service_errors())
            self._client.submit_job(
                entrypoint=shlex.join([*PROGRAM, *arguments]),
                submission_id=submission,
                runtime_env={**environment_there, "working_dir": working_dir},
                metadata={"rayception.name": name},
            )
        return submission

    def query(self, arguments: Sequence[str], *, job: Job | None = None, limit_s: float) -> Any:
        """The JSON that `rayception ARGUMENTS --json` prints on the cluster.

        Raises the command's error, as one with the same exit code; ServiceError if it has not ended
        within `limit_s`.
        """
        submission = self.submit_command(
            (*arguments, "--json"),
            name=QUERY,
            jobs=None if job is None else {JOB_FILE: job},
            environment=None if job is None else job.cluster.environment,
        )
        state = self._wait_for_end(submission, limit_s, QUERY_POLL_S)
        if not state.has_ended:
            with self._as_service_errors():
                self._client.stop_job(submission)
            raise ServiceError(
                f"cluster.address: got {self.address}, no answer to `{arguments[0]}` within "
                f"{limit_s:.0f} s ({state.message}). See its head's load and logs."
            )
        lines = [line for line in self._read_log(submission).splitlines() if line.strip()]
        if state.status == "SUCCEEDED":
            start = max(i for i, line in enumerate(lines) if line in ("{", "["))
            return json.loads("\n".join(lines[start:]))
        raise _error_class(state)(lines[-1] if lines else f"{submission}: {state.status}")

    def find(self, submission: str) -> Submission:
        """Raises JobError if the cluster has no such submission."""
        for entry in self._list():
            if entry.id == submission:
                return entry
        raise JobError(
            f"SUBMISSION: got {submission!r}; {self.address} has none of that name. "
            "`rayception list` names them."
        )

    def submissions(self) -> list[Submission]:
        """rayception's submissions, queries excepted, the newest first."""
        return [entry for entry in self._list() if entry.name != QUERY]

    def _list(self) -> list[Submission]:
        with self._as_service_errors():
            jobs = self._client.list_jobs()
        submissions = [
            Submission(
                id=job.submission_id,
                name=job.metadata["rayception.name"],
                status=str(job.status.value),
                message=" ".join((job.message or "").split())[:500],
                began_ms=job.start_time,
                ended_ms=job.end_time,
            )
            for job in jobs
            if (job.metadata or {}).get("rayception.name")
        ]
        return sorted(submissions, key=lambda entry: -(entry.began_ms or 0))

    def logs(self, submission: str) -> str:
        """What the driver has printed so far."""
        self.find(submission)
        return self._read_log(submission)

    def _read_log(self, submission: str) -> str:
        with self._as_service_errors():
            return str(self._client.get_job_logs(submission))

    def rank_logs(self, submission: str, rank: int) -> str:
        """What the rank's last process has printed. Raises JobError if there was none."""
        self.find(submission)
        runs = [
            run
            for run in self._get("/api/train/v2/runs/v1").json()["train_runs"]
            if (run.get("job_details") or {}).get("submission_id") == submission
        ]
        for run in sorted(runs, key=lambda run: -int(run["start_time_ns"])):
            for worker in (run["attempts"] or [{"workers": []}])[-1]["workers"]:
                if worker["world_rank"] == rank:
                    return "".join(self._worker_log(worker, suffix) for suffix in ("out", "err"))
        raise JobError(
            f"--rank: got {rank}; {submission} has started no such rank. Ranks count from 0; see "
            "`rayception logs` for what the driver says."
        )

    def _worker_log(self, worker: dict[str, Any], suffix: str) -> str:
        query = {"node_id": worker["node_id"], "actor_id": worker["actor_id"], "suffix": suffix}
        text: str = self._get(f"/api/v0/logs/file?{urlencode({**query, 'lines': -1})}").text
        return text.removeprefix("1")  # the API's sign of success

    def _get(self, path: str) -> Any:
        with self._as_service_errors():
            response = self._client._do_request("GET", path)  # with the cluster's token and headers
            if response.status_code != 200:
                raise RuntimeError(f"{path}: {response.status_code} {response.text[:200]}")
            return response

    def follow(self, submission: str) -> Iterator[str]:
        """The driver's lines until it ends. Raises an error with its exit code if it failed."""
        shown = 0
        while True:
            # Read before the log, so that the log of an ended driver is complete.
            state = self.find(submission)
            text = self._read_log(submission)
            end = len(text) if state.has_ended else text.rfind("\n") + 1
            yield from text[shown:end].splitlines()
            shown = max(shown, end)
            if state.has_ended:
                break
            time.sleep(POLL_S)
        if state.status != "SUCCEEDED":
            raise _error_class(state)(
                f"{submission}: got {state.status}; the last lines of its log give the reason "
                f"(`rayception logs {submission}`). Correct that, and submit it again."
            )

    def stop(self, submission: str) -> Submission:
        """Interrupts the driver and waits up to two minutes for its end."""
        self.find(submission)
        with self._as_service_errors():
            self._client.stop_job(submission)
        state = self._wait_for_end(submission, STOP_LIMIT_S, POLL_S)
        if not state.has_ended:
            raise ServiceError(
                f"{submission}: got {state.status} still, {STOP_LIMIT_S:.0f} s after it was "
                "asked to stop. See its logs; Ray kills what does not end."
            )
        return state

    def _wait_for_end(self, submission: str, limit_s: float, poll_s: float) -> Submission:
        """The submission when it has ended, or after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while True:
            state = self.find(submission)
            if state.has_ended or time.monotonic() > deadline:
                return state
            time.sleep(poll_s)

    @contextlib.contextmanager
    def _as_service_errors(self) -> Iterator[None]:
        try:
            yield
        except (RayError, RuntimeError, OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ServiceError(
                f"cluster.address: got {self.address}; its Jobs API did not answer or refused "
                f"({reason}). Name the dashboard's URL, such as http://head:8265, and set "
                "RAY_AUTH_TOKEN if it asks for a token."
            ) from error


def _error_class(state: Submission) -> type[RayceptionError]:
    match = re.search(r"exit code (\d+)", state.message)
    by_code = {error.exit_code: error for error in (JobError, ServiceError, TrainingError)}
    return by_code.get(int(match[1]) if match else 0, TrainingError)


def describe_submission(submission: Submission) -> dict[str, Any]:
    """A submission as the columns of a table."""
    start_ms, end_ms = submission.began_ms, submission.ended_ms or int(time.time() * 1000)
    return {
        "submission": submission.id,
        "job": submission.name,
        "status": submission.status,
        "for": "-" if start_ms is None else f"{(end_ms - start_ms) / 1000:.0f} s",
        "message": submission.message[-160:],
    }
