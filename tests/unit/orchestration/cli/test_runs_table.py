"""How runs look in a terminal."""

import time
from dataclasses import replace

import pytest
from rich.console import Console

from orchestration.cli.runs import MIDDLE, ROOMY, ago, table_of
from orchestration.tracking.table import RunRow

RUN_ID = "dacff405b74d41f3b982c48df6c10db8"
ROW = RunRow(
    name="quickstart-20261124-102745-c182 [with] brackets",
    run_id=RUN_ID,
    experiment="digits",
    status="FINISHED",
    started_s=time.time() - 400_000,
    duration_s=200_000.0,
    top1=97.2,
    epoch=100.0,
    step=125_000,
    images_per_second=12_345.0,
    attempts=12,
    children=120,
    silent_s=None,
)


def drawn(row: RunRow, width: int) -> str:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table_of([row], width=width))
    return captured.get()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0s ago"),
        (119, "119s ago"),
        (120, "2m ago"),
        (7300, "2h ago"),
        (47 * 3600, "47h ago"),
        (10 * 86400, "10d ago"),
    ],
)
def test_how_long_ago(seconds: float, said: str) -> None:
    assert ago(seconds) == said


@pytest.mark.parametrize(
    ("width", "shown", "hidden"),
    [(80, "97.20 %", "dacff"), (MIDDLE, "dacff405", RUN_ID), (ROOMY, RUN_ID, "…")],
)
def test_a_narrow_terminal_cuts_no_number(width: int, shown: str, hidden: str) -> None:
    text = drawn(ROW, width)
    assert "FINISHED" in text
    assert "55:33:20" in text
    assert "100 (125,000)" in text
    assert "12,345" in text
    assert shown in text
    assert hidden not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


@pytest.mark.parametrize(
    ("silent_s", "said"), [(20.0, "RUNNING"), (7300.0, "silent 2h"), (None, "RUNNING")]
)
def test_a_run_whose_driver_was_killed_is_told_from_one_that_runs(
    silent_s: float | None, said: str
) -> None:
    assert said in drawn(replace(ROW, status="RUNNING", silent_s=silent_s), 80)
