"""Trials as concurrent submissions: what the Jobs API says of each, and what it says no more."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import worker

from orchestration.cluster.jobs_api import Submission
from orchestration.driver import sweep_submissions
from orchestration.driver.sweep import Trial, expand
from orchestration.tracking.run_ref import RunRef

QUICKSTART = Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml"
PARENT = RunRef(uri="http://mlflow:5000", experiment_id="1", run_id="a-sweep")


class JobsApi:
    """Lists what was submitted as succeeded, but the first one not at all."""

    def __init__(self, address: str) -> None:
        self.submitted: list[str] = []

    def submissions(self) -> list[Submission]:
        return [
            Submission(
                id=name, name="a-job", status="SUCCEEDED", message="", began_ms=0, ended_ms=1
            )
            for name in self.submitted[1:]
        ]

    def stop(self, submission: str) -> None: ...


def submit(client: JobsApi, trial: Trial, parent: RunRef, name: str) -> str:
    client.submitted.append(f"submission-{name[-3:]}")
    return client.submitted[-1]


@pytest.mark.parametrize("limit", [1, 3])
def test_a_submission_that_ray_does_not_know_has_failed_and_the_others_go_on(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = expand([QUICKSTART], [], [], 3)
    top1 = {trial.key: 90.0 for trial in trials[1:]}
    node = SimpleNamespace(address_info={"webui_url": "127.0.0.1:8265"})
    monkeypatch.setattr(worker, "global_worker", SimpleNamespace(node=node))
    monkeypatch.setattr(sweep_submissions, "JobsClient", JobsApi)
    monkeypatch.setattr(sweep_submissions, "_submit", submit)
    monkeypatch.setattr(sweep_submissions, "POLL_S", 0.0)
    monkeypatch.setattr(sweep_submissions, "finished_children", lambda parent: top1)
    lines: list[str] = []
    result = sweep_submissions.run_concurrently(trials, PARENT, {}, limit=limit, log=lines.append)
    assert result == top1
    ends = [line for line in lines if " is submission " not in line]
    assert ends == [
        "quickstart seed=0 failed: Ray does not know submission submission-000 any more",
        "quickstart seed=1 succeeded; see `rayception logs submission-001`",
        "quickstart seed=2 succeeded; see `rayception logs submission-002`",
    ]
