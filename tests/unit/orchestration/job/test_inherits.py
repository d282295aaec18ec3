"""Files that build on others, and the recipes, ladder and stems that do."""

from itertools import pairwise
from pathlib import Path

import pytest

from inception.cost import count_cost
from inception.family import build_architecture
from orchestration.errors import JobError
from orchestration.job.load import flatten, load_job, to_dict
from orchestration.job.plan import learning_rate_at, make_plan

ROOT = Path(__file__).resolve().parents[4]
JOBS = ROOT / "jobs"
LADDER = sorted((JOBS / "ladder").glob("[1-8]-*.yaml"))


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "job.yaml"


BASE = """
name: base
data: {train: "s3://data/mine/train", val: "s3://data/mine/val", augment: {flip: 0.1}}
model: {num_classes: 10}
schedule: {epochs: 2}
"""


def test_own_values_win_over_the_last_named_and_those_over_the_first(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base=BASE,
        recipe="optim: {lr: 0.3, momentum: 0.8}\ndata: {augment: {colour: 1.0}}",
        job="inherits: [base.yaml, recipe.yaml]\nname: mine\noptim: {lr: 0.4}",
    )
    job = load_job(path, ["optim.decay=0.5"])
    assert job.name == "mine"
    assert (job.optim.lr, job.optim.momentum, job.optim.decay) == (0.4, 0.8, 0.5)
    assert (job.data.augment.flip, job.data.augment.colour) == (0.1, 1.0)


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path, base=BASE)
    write(tmp_path / "below", middle="inherits: ../base.yaml\nseed: 3")
    assert load_job(write(tmp_path, job="inherits: below/middle.yaml\nname: mine")).seed == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"job": "inherits: none.yaml\nname: a"}, "which is no file"),
        ({"job": "inherits: job.yaml\nname: a"}, "inherits itself"),
        (
            {"job": "inherits: b.yaml\nname: a", "b": "inherits: job.yaml\nname: b"},
            "inherits itself",
        ),
        ({"job": "inherits: {a: 1}\nname: a"}, "a file or a list of files"),
        ({"job": "inherits: [3]\nname: a"}, "a file or a list of files"),
        ({"job": "inherits: b.yaml\nname: a", "b": "- x"}, "a mapping"),
        ({"job": "inherits: b.yaml\nname: a", "b": BASE + "optm: {lr: 1}"}, "Did you mean optim?"),
    ],
)
def test_a_broken_chain_is_one_line(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, **files))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_row_of_the_ladder_changes_one_thing() -> None:
    """Table 3 of 1512.00567, from GoogLeNet to Inception-v3."""
    rows = [flatten(to_dict(load_job(path))) for path in LADDER]
    changed = [
        {key for key in after if key != "name" and before[key] != after[key]}
        for before, after in pairwise(rows)
    ]
    assert changed == [
        {"model.options.batch_norm"},
        {"model.name"},
        {"model.name"},
        {"optim.name"},
        {"loss.label_smoothing"},
        {"model.options.factorized_7x7"},
        {"model.options.side_head_norm"},
    ]
    top = load_job(LADDER[-1]).model.architecture()
    v3 = build_architecture("inception_v3", num_classes=10, input_size=75, width=0.25)
    assert (top.stages, top.aux_heads) == (v3.stages, v3.aux_heads)


@pytest.mark.parametrize(("size", "giga"), [(299, 5.713), (151, 5.713), (79, 5.362)])
def test_low_resolution_jobs(size: int, giga: float) -> None:
    job = load_job(JOBS / "low-resolution" / f"{size}.yaml")
    assert job.model.input_size == size
    assert round(count_cost(job.model.architecture()).multiply_adds / 1e9, 3) == giga


@pytest.mark.parametrize("name", ["paper", "tpu", "gluon", "modern"])
def test_recipes_lay_over_a_job(tmp_path: Path, name: str) -> None:
    parents = [JOBS / "imagenet-v3.yaml", JOBS / "recipes" / f"{name}.yaml"]
    path = write(tmp_path, job=f"inherits: [{', '.join(map(str, parents))}]\nname: mine")
    job = load_job(path, ["cluster.accelerators=H100:4", "cluster.num_nodes=2"])
    plan = make_plan(job, train_samples=1_281_167, val_samples=50_000)
    first, last = (learning_rate_at(job, plan, step) for step in (0, plan.total_steps - 1))
    after = learning_rate_at(job, plan, plan.warmup_steps + 1)
    rates = {"paper": 0.045, "tpu": 0.165 * 1024 / 256, "gluon": 0.4, "modern": 0.4}
    assert after == pytest.approx(rates[name], rel=1e-3)
    assert last < after
    assert (first < after) == (plan.warmup_steps > 0)
    head = (JOBS / "recipes" / f"{name}.yaml").read_text().splitlines()[0]
    assert head.startswith("# Unproven" if name == "modern" else "# Published")


@pytest.mark.parametrize(
    ("rule", "expected"), [("none", 0.1), ("linear", 0.8), ("sqrt", 0.1 * 8**0.5)]
)
def test_rate_scales_with_the_batch(rule: str, expected: float) -> None:
    job = load_job(
        JOBS / "imagenet-v3.yaml",
        ["optim.lr=0.1", f"optim.lr_scaling={rule}", "data.global_batch_size=2048",
         "schedule.warmup_epochs=0"],
    )  # fmt: skip
    plan = make_plan(job, train_samples=1_281_167, val_samples=50_000)
    assert learning_rate_at(job, plan, 0) == pytest.approx(expected)


def test_step_schedule_falls_at_its_milestones() -> None:
    job = load_job(
        JOBS / "quickstart.yaml",
        ["schedule.name=step", "schedule.milestones=[2,4]", "schedule.decay=0.1",
         "schedule.warmup_epochs=0", "optim.lr=1"],
    )  # fmt: skip
    plan = make_plan(job, train_samples=1437, val_samples=360)
    rates = [learning_rate_at(job, plan, step) for step in range(plan.total_steps)]
    assert sorted({round(rate, 9) for rate in rates}) == [0.01, 0.1, 1.0]
    falls = [step for step in range(1, len(rates)) if rates[step] < rates[step - 1]]
    assert [plan.epoch_at(step) for step in falls] == pytest.approx([2, 4], abs=0.03)
