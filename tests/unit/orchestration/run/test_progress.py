"""A progress line is parsed as it was written."""

import io
import math
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestration.cli.panel import show_log
from orchestration.run.progress import Progress, format_duration, format_progress, parse_progress

reports = st.builds(
    Progress,
    step=st.integers(0, 10**7),
    total_steps=st.integers(1, 10**7),
    epoch=st.floats(0, 1e4),
    loss=st.floats(0, 1e6),
    images_per_second=st.floats(0, 1e6),
    data_wait_fraction=st.floats(0, 1),
    top1=st.none() | st.floats(0, 100),
    attempt=st.integers(1, 999),
    ranks=st.integers(1, 4096),
    checkpoint_s=st.just(0.0),
    eta_s=st.floats(0, 1e6),
)


@given(reports)
def test_what_is_written_is_read(progress: Progress) -> None:
    line = format_progress(progress)
    parsed = parse_progress(line)
    assert parsed is not None
    assert format_progress(parsed) == line
    for key in ("step", "total_steps", "attempt", "ranks"):
        assert parsed[key] == progress[key]
    assert math.isclose(parsed["loss"], progress["loss"], abs_tol=6e-4)
    assert (parsed["top1"] is None) == (progress["top1"] is None)


def test_other_lines_are_not_progress() -> None:
    for line in ("", "- run x in MLflow experiment y", "step 3 of 4", "step 1/2: epoch"):
        assert parse_progress(line) is None


def test_times_are_read_by_people() -> None:
    assert [format_duration(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


LINE = "step 12/360: epoch 0.27, loss 2.345, 312 images/s, data wait 3 %, 2 ranks, 0:41 left"


def test_one_panel_is_redrawn_and_other_lines_stay() -> None:
    """On a terminal; elsewhere every line as it came, without control characters."""
    for is_terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=is_terminal, width=100, highlight=False)
        lines = ["- run quickstart in MLflow [/odd]", LINE, LINE.replace("12/360", "13/360")]
        show_log(console, "quickstart-1a2b", lines)
        shown = screen.getvalue()
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        assert "- run quickstart in MLflow [/odd]" in plain
        assert ("step 13 of 360, 0:41 left" in plain) == is_terminal
        assert (LINE in shown) != is_terminal
        assert ("\x1b" in shown) == is_terminal
