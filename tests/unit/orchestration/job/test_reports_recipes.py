"""Public reports about the edges of a recipe, tried: what a trainer does with too few samples, a
learning rate of zero, a warm-up longer than the run, and one class."""

from math import isfinite
from pathlib import Path

import pytest

from datasets.order import eval_batches_of_rank, micro_batch_positions
from orchestration.errors import JobError
from orchestration.job.load import load_job
from orchestration.job.plan import learning_rate_at, make_plan

JOB = Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml"
FREE = ("data.train_samples=null", "data.val_samples=null", "data.shuffle.lanes=1")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model.num_classes=1",), "model.num_classes: got 1; at least 2"),
        (("model.num_classes=0",), "at least 2"),
        (("optim.lr=0",), "optim.lr: got 0.0; more than 0"),  # pytorch/pytorch#86454
        (("optim.lr=-0.1",), "more than 0"),
        (("schedule.warmup_epochs=8",), "less than schedule.epochs"),  # lightly-ai/lightly#1842
        (("schedule.warmup_epochs=80",), "less than schedule.epochs"),
        (("schedule.warmup_epochs=-1",), "from 0 to less"),
        (("schedule.epochs=0",), "more than 0"),
        (("schedule.epochs=1e9",), "at most 100,000"),
        (("schedule.every_epochs=0",), "more than 0"),  # pytorch/pytorch#178295
        (("data.micro_batch_size=1",), "at least 2"),  # pytorch/pytorch#7716
    ],
)
def test_a_recipe_that_cannot_train_is_refused(overrides: tuple[str, ...], expected: str) -> None:
    """The report stands at the case."""
    with pytest.raises(JobError) as caught:
        load_job(JOB, overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("samples", [1, 31])
def test_a_batch_larger_than_the_set_is_refused(samples: int) -> None:
    """huggingface/datasets#7113: with drop_last such a set had no batch at all, and no error."""
    with pytest.raises(JobError, match=r"data\.global_batch_size: got 32; at most .* Write"):
        make_plan(load_job(JOB, FREE), train_samples=samples, val_samples=1)


@pytest.mark.parametrize("samples", [32, 33, 63, 64, 65])
def test_one_sample_left_over_is_trained_on_in_a_whole_batch(samples: int) -> None:
    """pytorch/pytorch#7716, chemprop/chemprop#680: a last batch of one sample, which batch norm
    cannot normalize, or which drop_last leaves out. Here it begins the next epoch's batch."""
    job = load_job(JOB, FREE)
    plan = make_plan(job, train_samples=samples, val_samples=samples)
    seen = []
    for step in range(plan.total_steps):
        for index in range(plan.num_micro_batches):
            positions = micro_batch_positions(
                step, index, global_batch=32, micro_batch=plan.micro_batch_size
            )
            assert len(positions) == plan.micro_batch_size
            seen += (positions % samples).tolist()
    counts = [seen.count(sample) for sample in range(samples)]
    assert min(counts) >= job.schedule.epochs
    assert max(counts) <= job.schedule.epochs + 1
    scored: list[int] = []
    for rank in range(3):
        for first, count in eval_batches_of_rank(
            rank, world_size=3, num_samples=samples, batch_size=plan.eval_batch_size
        ):
            scored += range(first, first + count)
    assert sorted(scored) == list(range(samples))


@pytest.mark.parametrize("name", ["cosine", "staircase", "constant", "step"])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 1.99])
def test_the_rate_of_every_step_is_a_number_above_zero(name: str, warmup: float) -> None:
    """huggingface/pytorch-image-models#1242, #2312, InternLM/xtuner#1285: jumps after the warm-up,
    a division by zero where it fills the run."""
    milestones = "[1]" if name == "step" else "[]"
    overrides = (f"schedule.name={name}", f"schedule.milestones={milestones}", "schedule.epochs=2")
    job = load_job(JOB, (*FREE, *overrides, f"schedule.warmup_epochs={warmup}"))
    plan = make_plan(job, train_samples=100, val_samples=10)
    rates = [learning_rate_at(job, plan, step) for step in range(plan.total_steps)]
    assert all(isfinite(rate) and rate > 0 for rate in rates)
    assert max(rates) <= job.optim.lr
