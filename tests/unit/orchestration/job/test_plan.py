"""Every derived number of a job, and that every YAML in jobs/ has a plan."""

import json
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.errors import JobError
from orchestration.job.load import load_job
from orchestration.job.plan import learning_rate_at, make_plan
from tests import forks

ROOT = Path(__file__).resolve().parents[4]
JOBS = [path for path in sorted((ROOT / "jobs").rglob("*.yaml")) if path.parent.name != "recipes"]
QUICKSTART = load_job(ROOT / "jobs" / "quickstart.yaml")


def rayception(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).parent / "rayception"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_job_plans(path: Path) -> None:
    result = forks.rayception("plan", str(path), "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["total_steps"] > 0
    assert plan["parameters"] > 0


def test_quickstart_numbers() -> None:
    plan = make_plan(QUICKSTART, train_samples=1437, val_samples=360)
    assert plan.world_size == 2
    assert plan.num_micro_batches == 2
    assert plan.total_steps == ceil(8 * 1437 / 32) == 360
    assert len(plan.epoch_ends) == 8
    assert plan.epoch_ends[-1] == 360
    assert plan.steps_per_epoch == pytest.approx(44.906, abs=1e-3)


def test_imagenet_numbers() -> None:
    job = load_job(ROOT / "jobs" / "imagenet-v3.yaml")
    plan = make_plan(job, train_samples=1_281_167, val_samples=50_000)
    assert plan.world_size == 32
    assert plan.parameters == 27_161_264
    assert plan.parameters - plan.side_head_parameters == 23_834_568
    assert plan.multiply_adds == pytest.approx(5.713e9, rel=1e-3)
    assert plan.gradient_bytes == pytest.approx(108.6e6, rel=1e-3)
    assert plan.num_micro_batches == 128
    assert plan.is_even
    assert plan.partial_sums == 1
    assert plan.gradient_sums == 3  # of 4 micro-batches a rank: two, one, and the fourth


def test_what_ranks_that_are_no_power_of_two_cost() -> None:
    path = ROOT / "jobs" / "imagenet-v3.yaml"
    on_three = load_job(path, ["cluster.num_nodes=3"])
    plan = make_plan(on_three, train_samples=1_281_167, val_samples=50_000)
    assert plan.max_micro_batches_per_rank == plan.partial_sums == plan.gradient_sums == 6
    shown = forks.rayception("plan", str(path), "cluster.num_nodes=3").stdout
    assert "in 6 partial sums a rank" in shown
    fast = load_job(path, ["cluster.num_nodes=3", "cluster.reduction=fast"])
    assert make_plan(fast, train_samples=1_281_167, val_samples=50_000).partial_sums == 1


def test_what_a_device_computes_at_once() -> None:
    path = ROOT / "jobs" / "imagenet-v3.yaml"
    overrides = ("data.micro_batch_size=64", "model.bn_group_size=32")
    shown = forks.rayception("plan", str(path), *overrides).stdout
    assert "64 images in groups of 32 for batch norm, 2.19 TFLOP" in shown
    assert "at most 64 ranks can work" in shown


def test_stated_size_is_a_promise() -> None:
    with pytest.raises(JobError, match=r"data.train_samples: got 1437, but the manifest"):
        make_plan(QUICKSTART, train_samples=1438, val_samples=360)


def test_batch_larger_than_the_data_is_refused() -> None:
    job = load_job(
        ROOT / "jobs" / "quickstart.yaml",
        ["data.train_samples=20", "data.global_batch_size=32"],
    )
    with pytest.raises(JobError, match=r"data.global_batch_size: got 32; at most"):
        make_plan(job, train_samples=20, val_samples=360)


SHAPES = {
    "epochs": st.floats(0.5, 5),
    "samples": st.integers(64, 5000),
    "batches": st.integers(2, 4),
}


@settings(deadline=None, max_examples=5)
@given(**SHAPES)
def test_no_sample_is_left_out(epochs: float, samples: int, batches: int) -> None:
    assert_no_sample_is_left_out(epochs, samples, batches)


@pytest.mark.exhaustive
@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_no_sample_is_left_out_of_many_shapes(epochs: float, samples: int, batches: int) -> None:
    assert_no_sample_is_left_out(epochs, samples, batches)


def assert_no_sample_is_left_out(epochs: float, samples: int, batches: int) -> None:
    job = load_job(
        ROOT / "jobs" / "quickstart.yaml",
        [
            f"data.global_batch_size={16 * batches}",
            f"schedule.epochs={epochs}",
            "schedule.warmup_epochs=0",
            "data.train_samples=null",
        ],
    )
    plan = make_plan(job, train_samples=samples, val_samples=360)
    seen = plan.total_steps * plan.global_batch_size
    assert epochs * samples - 1e-6 <= seen < epochs * samples + plan.global_batch_size
    assert sorted(plan.epoch_ends) == list(plan.epoch_ends)
    for number, end in enumerate(plan.epoch_ends[:-1], start=1):
        assert (end - 1) * plan.global_batch_size < number * samples <= end * plan.global_batch_size
    assert plan.is_checkpoint_step(plan.total_steps, None)


def test_learning_rate_warms_up_then_falls() -> None:
    plan = make_plan(QUICKSTART, train_samples=1437, val_samples=360)
    rates = [learning_rate_at(QUICKSTART, plan, step) for step in range(plan.total_steps)]
    peak = rates.index(max(rates))
    assert peak == pytest.approx(plan.warmup_steps, abs=1)
    assert max(rates) == pytest.approx(0.045, rel=0.01)
    assert rates[-1] < 0.001
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_plan_is_for_people_too() -> None:
    result = rayception("plan", "jobs/imagenet-v3.yaml")
    assert result.returncode == 0
    for text in ("32 (4 x 8 H100 GPUs)", "27,161,264", "5.713 G", "learning rate"):
        assert text in result.stdout
    assert "\x1b[" not in result.stdout  # no colour outside a terminal


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["plan", "jobs/nothing.yaml"], 2, "got no such file"),
        (["validate", "jobs/quickstart.yaml", "optim.lrr=1"], 2, "Did you mean lr?"),
        (["plan", "jobs/quickstart.yaml", "data.train_samples=null"], 2, "stack up"),
        (["run", "jobs/quickstart.yaml", "model.name=resnet"], 2, "inception_v3"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], code: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCEPTION_HOME", str(tmp_path))
    result = forks.rayception(*arguments)
    assert result.returncode == code
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_models_are_listed_and_shown_stage_by_stage() -> None:
    listed = rayception("models")
    assert listed.returncode == 0, listed.stderr
    for text in ("inception_v4", "42,679,816", "7,005,832", "5.713"):
        assert text in listed.stdout
    shown = forks.rayception("models", "inception_v3")
    for text in ("Mixed_6e", "17 x 17 x 768", "8 x 8 x 2048", "23,834,568"):
        assert text in shown.stdout
    as_json = json.loads(forks.rayception("models", "googlenet", "--json").stdout)
    assert as_json["googlenet"]["stages"][-1]["grid"] == 7
    wrong = forks.rayception("models", "inception_v33")
    assert wrong.returncode == 2
    assert "Did you mean inception_v3?" in wrong.stderr
    small = forks.rayception("models", "inception_v3", "--input-size", "40")
    assert "at least 75 px" in small.stderr
