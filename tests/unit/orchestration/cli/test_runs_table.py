"""How runs look in a terminal."""

import time
from dataclasses import replace

import pytest

from orchestration.cli.runs import FULL_ID_WIDTH, SHORT_ID_WIDTH, rough_duration, runs_table
from orchestration.cli.tables import make_console
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


def render(row: RunRow, width: int) -> str:
    console = make_console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(runs_table([row], width=width))
    return captured.get()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7300, "2h"),
        (47 * 3600, "47h"),
        (10 * 86400, "10d"),
    ],
)
def test_how_long_ago(seconds: float, expected: str) -> None:
    assert rough_duration(seconds) == expected


@pytest.mark.parametrize(
    ("width", "shown", "hidden"),
    [
        (80, "97.20 %", "dacff"),
        (SHORT_ID_WIDTH, "dacff405", RUN_ID),
        (FULL_ID_WIDTH, RUN_ID, "…"),
    ],
)
def test_a_narrow_terminal_cuts_no_number(width: int, shown: str, hidden: str) -> None:
    text = render(ROW, width)
    assert "FINISHED" in text
    assert "5d ago" in text
    assert "55:33:20" in text
    assert "100 (125,000)" in text
    assert "12,345" in text
    assert shown in text
    assert hidden not in text
    assert "[with]" in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())


@pytest.mark.parametrize(
    ("silent_s", "status"), [(20.0, "RUNNING"), (7300.0, "silent 2h"), (None, "RUNNING")]
)
def test_a_run_whose_driver_was_killed_is_told_from_one_that_runs(
    silent_s: float | None, status: str
) -> None:
    assert status in render(replace(ROW, status="RUNNING", silent_s=silent_s), 80)
