"""The trials of a sweep and the table of their results."""

from pathlib import Path

import pytest

from orchestration.driver.sweep import Row, digest, expand, summarize, to_markdown
from orchestration.errors import JobError

QUICKSTART = Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml"


def test_every_combination_with_every_seed() -> None:
    trials = expand([QUICKSTART], ["schedule.epochs=2"], ["optim.lr=0.1,0.2", "seed=5"], 1)
    assert len(trials) == 2
    trials = expand([QUICKSTART], [], ["optim.lr=0.1,0.2", "model.dropout=0,0.5"], 3)
    assert len(trials) == 12
    assert {(t.job.optim.lr, t.job.model.dropout, t.job.seed) for t in trials} == {
        (lr, dropout, seed) for lr in (0.1, 0.2) for dropout in (0, 0.5) for seed in range(3)
    }
    assert trials[0].group == "quickstart optim.lr=0.1 model.dropout=0"
    assert len({trial.key for trial in trials}) == 12


def test_the_same_runs_are_the_same_sweep() -> None:
    def digest_of(*overrides: str) -> str:
        return digest(expand([QUICKSTART], list(overrides), [], 2))

    assert digest_of() == digest_of()
    assert digest_of() != digest_of("optim.lr=0.3")


@pytest.mark.parametrize(
    ("paths", "grid", "text"),
    [
        ([QUICKSTART, QUICKSTART], [], "twice"),
        ([QUICKSTART], ["optim.lr"], "FIELD=VALUE,VALUE"),
        ([QUICKSTART], ["optim.lrr=1,2"], "Did you mean lr?"),
        ([QUICKSTART], ["cluster.accelerators=CPU:1,CPU:2"], "another cluster"),
    ],
)
def test_mistakes_are_one_line(paths: list[Path], grid: list[str], text: str) -> None:
    with pytest.raises(JobError) as caught:
        expand(paths, [], grid, 1)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_are_honest_about_spread_and_failures() -> None:
    trials = expand([QUICKSTART], [], ["optim.lr=0.1,0.2,0.3"], 3)
    top1 = {t.key: 90.0 + t.job.seed for t in trials if t.job.optim.lr == 0.1}
    top1 |= {t.key: 50.0 for t in trials if t.job.optim.lr == 0.2 and t.job.seed == 1}
    rows = summarize(trials, top1)
    assert rows[0] == Row(
        group="quickstart optim.lr=0.1", runs=3, failed=0, top1=91.0, spread=1.0, lowest=90.0,
        highest=92.0,
    )  # fmt: skip
    assert (rows[1].runs, rows[1].failed, rows[1].spread) == (1, 2, None)
    assert (rows[2].runs, rows[2].top1) == (0, None)
    text = to_markdown(rows)
    assert "| quickstart optim.lr=0.1 | 3 | 91.00 | 1.00 | 90.00 to 92.00 |" in text
    assert "| quickstart optim.lr=0.3 | 0, 3 failed | - | - | - |" in text
