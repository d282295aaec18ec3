"""What commands print: results whole, and commands that can be copied."""

import json
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from orchestration.cli import app, tables
from orchestration.driver.driver import Outcome
from orchestration.job.load import load_job
from orchestration.tracking.run_ref import RunRef

ROOT = Path(__file__).resolve().parents[4]
JOB = load_job(ROOT / "jobs" / "quickstart.yaml", [])
RUN = "s3://runs/quickstart-20261124-102745-c182"
OUTCOME = Outcome(
    run=RunRef(uri="http://mlflow:5000/", experiment_id="1", run_id="dacff405b74d41f3"),
    run_name="quickstart-20261124-102745-c182",
    metrics={"val/top1": 97.0, "val/top5": 99.0, "val_ema/top1": 98.89, "val_ema/top5": 100.0},
    images_per_second=338.2,
    attempts=2,
    checkpoint_url=f"{RUN}/step-000000360",
    digest="0123456789abcdef0123456789abcdef",
    model_uri=None,
    wall_s=90.0,
    phases={},
)


def use_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal = tables.make_console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(tables, "console", terminal)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_commands_of_an_outcome_are_whole_lines(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No border beside them, no line break in them, however narrow the terminal."""
    if is_terminal:
        use_terminal(monkeypatch, width=40)
    monkeypatch.setattr(sys, "argv", ["rayception"])
    tables.print_result(False, {}, *tables.outcome_parts(JOB, OUTCOME, 93.4))
    lines = capsys.readouterr().out.splitlines()
    assert f"  rayception evaluate {RUN} --endpoint-url local" in lines
    assert "  rayception ui dacff405b74d41f3" in lines
    text = "\n".join(lines)
    assert ("╭" in text) == is_terminal
    assert "98.89 %" in text
    assert is_terminal or "  MLflow run: dacff405b74d41f3" in lines


def test_a_url_with_a_space_is_quoted_for_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["rayception"])
    job = load_job(ROOT / "jobs" / "quickstart.yaml", ["storage.endpoint_url=http://host:9000"])
    outcome = replace(OUTCOME, checkpoint_url="file:///my runs/a/step-1")
    _, commands = tables.outcome_parts(job, outcome, 93.4)
    assert "rayception evaluate 'file:///my runs/a' --endpoint-url http://host:9000\n" in commands


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_result(True, {"top1": [1.5, None]}, "for people")
    assert json.loads(capsys.readouterr().out) == {"top1": [1.5, None]}


def test_json_is_valid_without_a_finite_metric(capsys: pytest.CaptureFixture[str]) -> None:
    """As `run --json` prints a run whose loss diverged: JSON has null, and no NaN."""
    metrics = {"val/loss": float("nan"), "train/loss": float("inf"), "val/top1": 0.1 + 0.2}
    tables.print_result(True, asdict(replace(OUTCOME, metrics=metrics)))
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["metrics"] == {"val/loss": None, "train/loss": None, "val/top1": 0.1 + 0.2}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_brackets_are_no_markup(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if is_terminal:
        use_terminal(monkeypatch, width=80)
    tables.print_result(False, {}, tables.panel("a [bold]", {"b [/c]": "d :smile:"}), "[red]")
    text = capsys.readouterr().out
    for part in ("a [bold]", "b [/c]", "d :smile:", "[red]"):
        assert part in text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".venv/bin/rayception", ".venv/bin/rayception"),
        ("/elsewhere/bin/rayception", "rayception"),
        ("rayception", "rayception"),
    ],
)
def test_program_name(
    path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.resolve())
    monkeypatch.setattr(sys, "argv", [path])
    assert tables.program_name() == expected


def test_program_name_under_python_m(monkeypatch: pytest.MonkeyPatch) -> None:
    """As submitted jobs call it: a person has the command, and no path of that node."""
    names = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(app, "main", lambda: names.append(tables.program_name()))
    runpy.run_module("orchestration.cli", run_name="__main__", alter_sys=True)
    assert names == ["rayception"]
