"""A run under a name of its own: begun, left out a step that was named, complete."""

import json

import pytest

from datasets.storage.store import Store
from tests.integration.conftest import Home
from tests.integration.quickstart.conftest import JOB
from tests.integration.quickstart.test_resume import client, steps_of, store_of

SHORT = (JOB, "schedule.epochs=0.25", "schedule.warmup_epochs=0")


@pytest.fixture
def store(other_home: Home, monkeypatch: pytest.MonkeyPatch) -> Store:
    return store_of(other_home, monkeypatch)


def test_a_named_run_leaves_out_a_named_step_and_ends_once(other_home: Home, store: Store) -> None:
    """What an earlier attempt named as without a finite loss is left out where the job says so:
    every other step is done, at its own place. A complete run of that name is not begun again."""
    home, name = other_home, "named-run.1"
    bad = f"s3://runs/{name}/not-finite/step-000000007/rank-0.json"
    store.write(bad, json.dumps({"rank": 0, "step": 7, "samples": ["digit-0001"]}).encode())
    done = home.call("run", *SHORT, "loss.not_finite=skip", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["run_name"] == name
    assert outcome["checkpoint_url"] == f"s3://runs/{name}/step-000000012"
    run_id = outcome["run"]["run_id"]
    assert steps_of(home, run_id) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    slowest = client(home).get_metric_history(run_id, "train/slowest_rank")
    assert {point.value for point in slowest} <= {0.0, 1.0}
    again = home.call("run", *SHORT, "loss.not_finite=skip", "--name", name)
    assert again.returncode == 2
    assert "got a run that is complete" in again.stderr
    other = home.call("run", *SHORT, "optim.lr=0.1", "--name", name)
    assert other.returncode == 2
    assert "optim.lr: got 0.1, but the run began with 0.045" in other.stderr
    wrong = home.call("run", *SHORT, "--name", "../elsewhere")
    assert wrong.returncode == 2
    assert "--name: got '../elsewhere'" in wrong.stderr
