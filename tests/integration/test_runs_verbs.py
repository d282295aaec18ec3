"""ui, runs and compare, against the embedded server."""

import json
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestration.errors import ServiceError
from orchestration.run.timeline import ATTEMPTS_TAG
from orchestration.tracking.run_ref import RunRef
from orchestration.tracking.runs import (
    STORAGE_TAG,
    child_tags,
    close_run,
    log_metrics,
    open_parent,
    open_run,
    reopen_run,
)
from orchestration.tracking.table_view import table_page
from tests.integration.conftest import Home
from tests.waiting import BUSY, wait_for

LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")


@dataclass(frozen=True)
class Logged:
    """What lies on the server: runs by a short word, of which `first` is the oldest."""

    home: Home
    uri: str
    runs: dict[str, RunRef]

    def json(self, *arguments: str) -> Any:
        done = self.home.call(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, *arguments: str, code: int = 2) -> str:
        """The one line that is said instead."""
        done = self.home.call(*arguments)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        line = done.stderr.strip()
        assert LAW.match(line), line
        return line


@pytest.fixture(scope="module")
def logged(module_home: Home) -> Logged:
    uri = module_home.use_mlflow()
    runs: dict[str, RunRef] = {}

    def add(word: str, name: str, lr: float, top1: list[float], **tags: str) -> None:
        experiment = "other" if word == "elsewhere" else "digits"
        params = {"optim.lr": lr, "optim.name": "sgd", "seed": 0}
        more = {STORAGE_TAG: f"s3://{'runs' if word != 'twin-b' else 'attic'}/{name}"}
        run = open_run(uri, experiment=experiment, name=name, params=params, tags=more | tags)
        for epoch, one in enumerate(top1, start=1):
            rates = {"train/epoch": epoch, "train/images_per_second": 100.0, "train/loss": 1 / one}
            log_metrics(run, {"val/top1": one, **rates}, step=45 * epoch)
        runs[word] = run

    add("first", "digits-1", 0.1, [50.0, 91.0, 90.0], **{ATTEMPTS_TAG: "3"})
    close_run(runs["first"], "FINISHED")
    add("second", "digits-2", 0.2, [60.0, 80.0])
    close_run(runs["second"], "FAILED")
    add("twin-a", "twin", 0.1, [70.0])
    add("twin-b", "twin", 0.3, [71.0])
    add("elsewhere", "it's", 0.1, [])
    parent = open_parent(uri, experiment="digits", name="a-sweep", digest="abc")
    for number in range(2):
        key = f"child-{number}"
        tags = child_tags(parent, key)
        runs[key] = open_run(uri, experiment="digits", name=key, params={}, tags=tags)
    runs["parent"] = parent
    return Logged(module_home, uri, runs)


def test_runs_are_listed_the_newest_first(logged: Logged) -> None:
    rows = logged.json("runs")
    assert [row["name"] for row in rows] == [
        *("child-1", "child-0", "a-sweep", "it's", "twin", "twin", "digits-2", "digits-1")
    ]
    first = rows[-1]
    assert first["run_id"] == logged.runs["first"].run_id
    assert first["experiment"] == "digits"
    assert (first["status"], first["top1"], first["attempts"]) == ("FINISHED", 90.0, 3)
    assert (first["epoch"], first["step"], first["images_per_second"]) == (3, 135, 100)
    assert rows[0]["top1"] is None
    assert first["silent_s"] is None  # it has ended
    by_name = {row["name"]: row["silent_s"] for row in rows}
    assert 0 <= by_name["it's"] < 300
    assert by_name["a-sweep"] is None  # nothing of ours trains in it
    assert {row["name"]: row["children"] for row in rows if row["children"] is not None} == {
        "a-sweep": 2
    }
    shown = logged.home.call("runs", "--limit", "6").stdout
    assert "a-sweep (sweep of 2)" in shown
    assert logged.runs["twin-a"].run_id in shown  # whole, where no terminal is too narrow
    assert "digits-1" not in shown


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--experiment", "other"], {"it's"}),
        (["--status", "finished"], {"digits-1"}),
        (["--status", "FINISHED", "--status", "failed"], {"digits-1", "digits-2"}),
        (["--filter", "metrics.`val/top1` > 79"], {"digits-1", "digits-2"}),
        (["--filter", "params.optim.lr = '0.3'", "--status", "running"], {"twin"}),
        (["--filter", "metrics.`val/top1` > 99"], set()),
    ],
)
def test_runs_are_chosen(logged: Logged, options: list[str], names: set[str]) -> None:
    assert {row["name"] for row in logged.json("runs", *options)} == names


def test_a_choice_that_is_none_is_one_line(logged: Logged) -> None:
    line = logged.refused("runs", "--filter", "val/top1 is good")
    assert "--filter: got 'val/top1 is good'" in line
    assert len(line) < 450
    assert "digits" in logged.refused("runs", "--experiment", "digit")
    assert "Did you mean FAILED?" in logged.refused("runs", "--status", "failled")
    secret = "hunter2"
    said = logged.refused("runs", "--tracking-uri", f"http://me:{secret}@127.0.0.1:1")
    assert secret not in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "tracking.uri" in logged.refused("runs", "--tracking-uri", "http://127.0.0.1:9", code=3)


def test_runs_side_by_side(logged: Logged) -> None:
    second = logged.runs["second"].run_id
    said = logged.json("compare", "digits-1", second, "s3://attic/twin/", second[:12])
    assert [row["name"] for row in said["runs"]] == ["digits-1", "digits-2", "twin", "digits-2"]
    assert said["params"] == {"optim.lr": ["0.1", "0.2", "0.3", "0.2"]}
    assert said["metrics"]["val/top1"] == [90, 80, 71, 80]
    assert said["metrics"]["val/top1 (best)"] == [91, 80, 71, 80]
    assert next(iter(said["metrics"])) == "val/top1"
    shown = logged.home.call("compare", "digits-1", "it's").stdout
    assert re.search(r"val/top1 \(best\)\W+91\W+-", shown), shown


def test_a_run_that_is_none_or_several_is_one_line(logged: Logged) -> None:
    assert "Did you mean digits-1?" in logged.refused("compare", "digits-1", "digitz-1")
    ids = logged.refused("compare", "digits-1", "twin")
    assert logged.runs["twin-a"].run_id in ids
    assert logged.runs["twin-b"].run_id in ids
    assert "`rayception runs`" in logged.refused("ui", "zzz", "--no-open")
    logged.refused("compare", "digits-1")


def test_ui_opens_a_run_by_id_name_or_url(logged: Logged) -> None:
    run = logged.runs["first"]
    for called in (run.run_id, "digits-1", "s3://runs/digits-1"):
        done = logged.home.call("ui", called, "--no-open")  # the stack is kept: it ends
        assert page_of(logged, done) == run.page, done.stderr
    assert page_of(logged, logged.home.call("ui", "--no-open")) == "/"
    table = logged.home.call("ui", "--experiment", "other", "--no-open")
    assert page_of(logged, table) == table_page(logged.runs["elsewhere"].experiment_id)
    assert "digits" in logged.refused("ui", "--experiment", "digit", "--no-open")
    logged.refused("ui", "digits-1", "--experiment", "digits", "--no-open")
    default = logged.home.call("ui", "--experiment", "Default", "--no-open").stdout
    assert "viewStateShareKey" not in default  # it has no view of ours
    logged.home.environment["MLFLOW_TRACKING_URI"] = logged.uri
    try:
        done = logged.home.call("ui", "digits-1", "--no-open")
    finally:
        del logged.home.environment["MLFLOW_TRACKING_URI"]
    assert page_of(logged, done) == run.page


def page_of(logged: Logged, done: "subprocess.CompletedProcess[str]") -> str:
    """The page that the link leads to once the browser is logged in."""
    link = re.fullmatch(
        rf"{logged.uri}/rayception-login#\d+\.[0-9a-f]{{64}}(#.*)?", done.stdout.strip()
    )
    assert link is not None, done.stdout + done.stderr
    return f"/{link[1] or ''}"


def test_what_was_deleted_is_said_with_how_to_restore_it(logged: Logged) -> None:
    """In MLflow's UI, for instance; the experiment of a new run, and a run that is to go on."""
    client = MlflowClient(tracking_uri=logged.uri)
    run = open_run(logged.uri, experiment="gone", name="a", params={}, tags={})
    client.delete_experiment(run.experiment_id)
    with pytest.raises(ServiceError, match=r"^tracking\.experiment: got gone, which is del") as it:
        open_run(logged.uri, experiment="gone", name="b", params={}, tags={})
    assert f"mlflow experiments restore --experiment-id {run.experiment_id}`" in str(it.value)
    client.restore_experiment(run.experiment_id)
    again = open_run(logged.uri, experiment="gone", name="b", params={}, tags={})
    client.delete_run(again.run_id)
    with pytest.raises(ServiceError, match=rf"mlflow runs restore --run-id {again.run_id}`"):
        reopen_run(again, {})
    missing = RunRef(uri=logged.uri, experiment_id="0", run_id="0" * 32)
    with pytest.raises(ServiceError, match=f"has no run {missing.run_id}"):
        reopen_run(missing, {})


def test_what_is_started_for_a_look_ends_with_it(home: Home, tmp_path: Path) -> None:
    """No stack runs: `runs` starts one, quietly, and turns it off; `ui` waits for Ctrl-C."""
    done = home.call("runs")
    assert (done.returncode, done.stdout.strip()) == (0, "no run"), done.stderr
    home.wait_until_empty()
    process = home.start("ui", "--no-open")
    wait_for(lambda: "Ctrl-C" in (tmp_path / "stdout").read_text(), 90)
    uri = home.use_mlflow()
    assert f"{uri}/rayception-login#" in (tmp_path / "stdout").read_text()
    assert MlflowClient(tracking_uri=uri).search_experiments()
    process.send_signal(signal.SIGINT)
    assert process.wait(90 * BUSY) == 130
    home.wait_until_empty()
