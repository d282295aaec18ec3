"""HTML pages: their content, their size, and that no class or run name can inject markup."""

import json
import re

import pytest
import torch

from orchestration.report.html import MAX_CELLS, NO_DATA, class_page, confusion_page, timeline_page
from orchestration.run.timeline import Attempt

HOSTILE = '</script><b onclick="x()">&<!--'


def data_of(page: str) -> dict[str, list[object]]:
    match = re.search(r"const data = (.*?);\s", page, re.DOTALL)
    assert match is not None
    data: dict[str, list[object]] = json.loads(match[1])
    return data


def assert_self_contained(page: str, *, scripts: int = 1) -> None:
    """It loads nothing, and no name in it ends its script or starts a tag."""
    assert page.count("<script>") == page.count("</script>") == scripts
    assert "<b onclick" not in page
    assert "<!--" not in page
    assert not re.search(r"""(src|href)=|url\(|@import|https?:""", page)


def test_a_confusion_page_has_the_worst_pair_first_and_no_name_breaks_it() -> None:
    page = confusion_page(torch.tensor([[5, 1, 0], [3, 4, 0], [0, 0, 2]]), ["cat", HOSTILE, "cow"])
    assert_self_contained(page)
    data = data_of(page)
    assert data["classes"] == ["cat", HOSTILE, "cow"]
    assert data["cells"] == [[1, 0, 3], [0, 1, 1]]
    assert (data["correct"], data["totals"]) == ([5, 4, 2], [6, 7, 2])
    assert "4 of 15 images" in page


@pytest.mark.parametrize("errors", [12, 990])
def test_a_thousand_classes_stay_small(errors: int) -> None:
    torch.manual_seed(0)
    confusion = torch.diag(torch.full((1000,), 38))
    for truth in range(1000):
        confusion[truth, torch.randint(0, 1000, (errors,))] += 1
    page = confusion_page(confusion, [f"n{i:08d}, a class of a long name" for i in range(1000)])
    assert len(page) < 2_000_000
    assert len(data_of(page)["cells"]) <= MAX_CELLS
    assert ("most frequent." in page) == (len(data_of(page)["cells"]) == MAX_CELLS)


def test_pages_of_nothing_say_so() -> None:
    for count in (0, 2):
        page = confusion_page(torch.zeros((count, count), dtype=torch.int64), ["a", "b"][:count])
        assert NO_DATA in page
    assert NO_DATA in class_page([])


def test_a_class_page_begins_with_the_worst() -> None:
    page = class_page([("good", 10, 90.0), (HOSTILE, 3, 33.0)])
    assert_self_contained(page)
    assert data_of(page)["rows"] == [[HOSTILE, 3, 33.0], ["good", 10, 90.0]]
    assert "Mean accuracy: 61.5 %" in page
    assert "Classes below 50 %: 1." in page


def attempt(
    began: float, ended: float, from_step: int, to_step: int, ended_by: str = ""
) -> Attempt:
    return Attempt(
        began=began, ended=ended, ranks=4, from_step=from_step, to_step=to_step,
        trained_s=0.8 * (ended - began), ended_by=ended_by,
    )  # fmt: skip


def test_a_timeline_shows_attempts_and_what_was_between() -> None:
    attempts = [attempt(1000, 1060, 0, 50, f"rank 1 died {HOSTILE}"), attempt(1080, 1100, 40, 70)]
    page = timeline_page(attempts, HOSTILE)
    assert_self_contained(page, scripts=0)
    assert page.count('class="attempt"') == 2
    assert re.findall(r'class="idle-time"[^>]*>([^<]*)<', page) == ["20 s"]
    assert 'style="left:80.000%;width:20.000%"' in page  # the second attempt
    assert 'style="left:60.000%;width:20.000%"' in page  # the idle time before it
    assert "2 attempts in 100 s; goodput 54 %" in page
    assert "1970-01-01 00:16 UTC" in page
    assert "rank 1 died &lt;/script&gt;" in page
    assert "<td>running</td>" in page


@pytest.mark.parametrize(
    ("seconds", "last"),
    [(0, "0 s"), (7, "7 s"), (100, "90 s"), (3600, "60 min"), (14_000, "210 min"),
     (90_000, "25 h"), (3_000_000, "30 d")],
)  # fmt: skip
def test_a_timelines_axis_is_of_round_times(seconds: float, last: str) -> None:
    page = timeline_page([attempt(1000, 1000 + seconds, 0, 9)], "a-run")
    ticks = re.findall(r"<span>([^<]*)</span></i>", page)
    assert ticks[0].startswith("0 ")
    assert ticks[-1] == last
    assert len(ticks) <= 9
