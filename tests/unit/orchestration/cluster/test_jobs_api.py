"""How a submission is followed. (Ray's Jobs API itself: tests/integration/test_submit.py.)"""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from orchestration.cluster import jobs_api
from orchestration.cluster.jobs_api import JobsClient
from orchestration.errors import ServiceError


class Polls:
    """Stands for Ray's client: each list of jobs is that of the next poll, and is counted."""

    def __init__(self, *polls: tuple[JobStatus, str, str]) -> None:
        """polls: (status, message, log so far)."""
        self._polls = polls
        self.lists = 0

    def list_jobs(self) -> list[Any]:
        status, message, _ = self._polls[self.lists]
        self.lists += 1
        return [
            SimpleNamespace(
                submission_id="a-1", metadata={"rayception.name": "a"}, status=status,
                message=message, start_time=1, end_time=None,
            )
        ]  # fmt: skip

    def get_job_logs(self, submission: str) -> str:
        return self._polls[self.lists - 1][2]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> JobsClient:
    monkeypatch.setattr(jobs_api, "POLL_S", 0.0)
    client = JobsClient.__new__(JobsClient)
    client.address = "http://head:8265"
    return client


def test_a_follower_asks_for_the_list_once_a_poll_and_shows_each_line_once(
    client: JobsClient,
) -> None:
    polls: Any = Polls(
        (JobStatus.PENDING, "", ""),
        (JobStatus.RUNNING, "", "step 1\nste"),
        (JobStatus.RUNNING, "", "step 1\nstep 2\n"),
        (JobStatus.SUCCEEDED, "", "step 1\nstep 2\ndone"),
    )
    client._client = polls
    assert list(client.follow("a-1")) == ["step 1", "step 2", "done"]
    assert polls.lists == 4


def test_following_ends_with_the_error_of_the_submission(client: JobsClient) -> None:
    polls: Any = Polls((JobStatus.FAILED, "Job failed, exit code 3", "no cluster\n"))
    client._client = polls
    lines = client.follow("a-1")
    assert next(lines) == "no cluster"
    with pytest.raises(ServiceError, match="a-1: got FAILED"):
        next(lines)
