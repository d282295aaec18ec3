"""A job YAML becomes a frozen Job; every mistake is one line in the form of the error law."""

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from orchestration.errors import JobError
from orchestration.job.job import Job
from orchestration.job.load import TYPE_NAMES, flatten, from_dict, load_job, to_dict, to_yaml

ROOT = Path(__file__).resolve().parents[4]
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"
SMALLEST = """
name: mine
data: {train: "s3://data/mine/train", val: "s3://data/mine/val"}
model: {num_classes: 10}
schedule: {epochs: 2}
"""
# The error law: `<field path or file>: got <value>; <rule>. <what to do>.`
LAW = re.compile(r"^\S.*?: got .+; .+\. .+[.?]$")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load_job(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert LAW.match(message), message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # noqa: S301 - our own bytes
    return message


def test_smallest_job_has_honest_defaults(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, SMALLEST))
    assert job.cluster.address == "local"
    assert job.model.name == "inception_v3"
    assert job.model.input_size == 299
    assert job.data.micro_batch_size == 32  # the paper's, per replica
    assert (job.optim.lr, job.optim.eps) == (0.045, 1.0)


def test_job_is_frozen() -> None:
    job = load_job(QUICKSTART)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.optim.lr = 1.0  # type: ignore[misc]


def test_overrides_apply_in_order_and_by_type() -> None:
    job = load_job(QUICKSTART, ["optim.lr=1e-2", "optim.lr=0.1", "data.augment.area=[0.5,1]"])
    assert job.optim.lr == 0.1
    assert job.data.augment.area == (0.5, 1.0)


def test_null_switches_off() -> None:
    assert load_job(QUICKSTART, ["optim.clip_norm=null"]).optim.clip_norm is None


def test_job_survives_dict_and_yaml(tmp_path: Path) -> None:
    job = load_job(QUICKSTART, ["optim.lr=0.1", "data.augment.flip=0.25"])
    assert from_dict(to_dict(job)) == job
    assert load_job(write(tmp_path, to_yaml(job))) == job


def test_flatten_names_every_field_by_its_path() -> None:
    flat = flatten(to_dict(load_job(QUICKSTART)))
    assert flat["optim.lr"] == 0.045
    assert flat["data.shuffle.lanes"] == 8
    assert not any(isinstance(value, dict) for value in flat.values())


def test_environment_interpolates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SMALLEST + 'tracking: {uri: "${oc.env:TRACKING_FOR_TEST}"}'
    monkeypatch.setenv("TRACKING_FOR_TEST", "https://mlflow.example.org")
    assert load_job(write(tmp_path, text)).tracking.uri == "https://mlflow.example.org"
    monkeypatch.delenv("TRACKING_FOR_TEST")
    assert "TRACKING_FOR_TEST" in refused(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lrr=0.1", "Did you mean lr?"),
        (
            "model.bn_group_size=6",
            "Write a divisor of 16, or make data.micro_batch_size a multiple of 6",
        ),
        (
            "model.bn_group_size=32",
            "Write a divisor of 16, or make data.micro_batch_size a multiple of 32",
        ),
        ("model.bn_group_size=1", "at least 2"),
        ("cluster.reduction=quick", "exact, fast"),
        ("optm.lr=0.1", "Did you mean optim?"),
        ("data.shuffle.lane=3", "Did you mean lanes?"),
        ("optim.lr=fast", "a number"),
        ("optim.clip_norm=none", "a number or null"),
        ("model.num_classes=ten", "a whole number"),
        ("model.side_head=maybe", "true or false"),
        ("data.augment.area=3", "two numbers"),
        ("optim=3", "a section with name, lr"),
        ("data.shuffle=deep", "a section with lanes"),
        ("optim=[1]", "optim: got [1]; a section with name, lr"),
        ("cluster.secrets=3", "cluster.secrets: got another type; a list such as [a, b]"),
        ("cluster.secrets=[null]", "cluster.secrets[0]: got another type; a list"),
        ("cluster.num_nodes=two", "got 'two'; a whole number, or {min: 2, max: 4}"),
        ("cluster.num_nodes={min: a, max: 2}", "; a whole number, or {min: 2, max: 4}"),
        ("cluster.accelerators=3", "got 3; text, or a list such as [a, b]"),
        ("cluster.environment.pip=torch", "got 'torch'; a list such as [a, b]"),
        ("cluster.environment.variables=A", "got 'A'; text by name, such as {NAME: text}"),
        ("cluster.environment.variables={A: null}", "variables.A: got None; text by name"),
        ("cluster.dollars_per_hour={H100: much}", "H100: got 'much'; numbers by name"),
        ("cluster.accelerators=[[1]]", "unreadable"),
        ("schedule.milestones=[a]", "schedule.milestones: got ['a']; a list of numbers"),
        ("data.augment.area={a: 1}", "two numbers"),
        ("data.augment.area=[1]", "data.augment.area: got [1]; two numbers"),
        ("optim.lr={", "unreadable"),
        ("optim.lr=${", "optim.lr: got an unreadable value"),
        ("model.name=inception_v33", "Did you mean inception_v3?"),
        ("optim.name=rmsprop", "Did you mean rmsprop_tf?"),
        ("schedule.name=cosin", "Did you mean cosine?"),
        ("model.precision=fp8", "one of auto, fp32, bf16"),
        ("model.input_size=74", "75"),
        ("data.global_batch_size=33", "Write 32"),
        ("data.micro_batch_size=32", "each rank needs at least one"),
        ("cluster.accelerators=CPU:3", "each rank needs at least one"),
        ("cluster.accelerators=H1000:2", "Did you mean H100?"),
        ("cluster.accelerators=CPU:0", "at least 1"),
        ("cluster.accelerators=CPU:two", "whole number"),
        ("cluster.num_nodes=2", "this machine is one node"),
        ("cluster.num_nodes=0", "at least 1"),
        ("cluster.address=auto", "loopback"),
        ("cluster.address=locl", "Did you mean local?"),
        ("data.train=digits", "s3://BUCKET/PATH"),
        ("data.train=https://host/x?signature=s", "without a query"),
        ("data.val=s3://data/digits/train/", "its own prefix"),
        ("data.decoder=nvjpg", "Did you mean nvjpeg?"),
        ("data.decoder=nvjpeg", "it decodes on a GPU"),
        ("data.loader_workers=-1", "at least 0"),
        ("data.cache_gib=-1", "from 0 to"),
        ("data.cache_folder=cache", "an absolute path"),
        ("data.augment.colour=2", "from 0 to 1"),
        ("data.augment.rand_operations=15", "from 0 to 14"),
        ("model.init_from=weights.pt", "the s3://, file:///"),
        ("model.init_from=https://u:p@host/w.pt?key=k", "the s3://, file:///"),
        ("data.source=mnist", "digits"),
        ("data.augment.area=[0.9,0.1]", "smallest <= largest"),
        ("data.augment.flip=2", "from 0 to 1"),
        ("schedule.epochs=0", "more than 0"),
        ("schedule.warmup_epochs=8", "schedule.epochs (8.0)"),
        ("optim.lr=-1", "more than 0"),
        ("model.dropout=1", "from 0 to 0.99"),
        ("loss.label_smoothing=1", "from 0 to 0.99"),
        ("checkpoint.storage=/tmp/x", "s3://BUCKET"),
        ("checkpoint.keep=0", "at least 1"),
        ("tracking.uri=mlflow", "`local`"),
        ("tracking.register=team/flowers", "no / or :"),
        ("tracking.register='flowers:1'", "no / or :"),
        ("tracking.register=''", "begins with a letter"),
        ("name=My Job", "lower-case"),
        ("seed=-1", "0 to 2^63"),
        ("optim.lr", "FIELD=VALUE"),
        ("name=null", "text"),
    ],
)
def test_mistake_gets_one_line_with_the_remedy(override: str, expected: str) -> None:
    message = refused(QUICKSTART, override)
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "an empty file"),
        ("- a\n- b\n", "a list or a plain value; a job is a mapping"),
        ("3\n", "a list or a plain value; a job is a mapping"),
        ("true\n", "a list or a plain value; a job is a mapping"),
        ("quickstart\n", "a list or a plain value; a job is a mapping"),
        ("{}\n", "an empty file"),
        ("null: 3\n", "a job is YAML"),
        ("name: ${\n", "a job is YAML"),
        ("name: [", "line"),
        ("name: mine\n\tdata: {}", "line 2"),
        ("name: mine", "a job must set it"),
        (SMALLEST.replace("num_classes: 10", "width: 1.0"), "model.num_classes"),
        (SMALLEST + "optim: 3\n", "optim: got 3"),
        (SMALLEST + "lr: 3\n", "lr: got a key"),
    ],
)
def test_broken_file_gets_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(write(tmp_path, text))


def test_missing_file_names_the_nearest() -> None:
    assert "quickstart.yaml?" in refused(ROOT / "jobs" / "quickstrat.yaml")
    assert "jobs/quickstart.yaml" in refused(Path("/nowhere/x.yaml"))


@pytest.mark.parametrize("field", ["tracking.uri", "storage.endpoint_url"])
def test_credentials_in_a_url_are_refused_and_not_repeated(field: str) -> None:
    message = refused(QUICKSTART, f"{field}=https://user:hunter2@host:9000")
    assert "hunter2" not in message


@pytest.mark.parametrize("value", ["hunter2", "{AWS_SECRET_ACCESS_KEY: hunter2}"])
def test_a_secret_in_the_wrong_place_is_not_repeated(value: str) -> None:
    assert "hunter2" not in refused(QUICKSTART, f"cluster.secrets={value}")


def test_local_services_are_those_that_the_job_calls_local() -> None:
    job = load_job(QUICKSTART)
    assert job.local_services() == {"s3", "mlflow", "ray"}
    partly_local = load_job(
        QUICKSTART, ["tracking.uri=http://mlflow:5000", "storage.endpoint_url=null"]
    )
    assert partly_local.local_services() == {"ray"}


def leaf_fields(section: Any) -> list["dataclasses.Field[Any]"]:
    leaves = []
    for field in dataclasses.fields(section):
        is_section = dataclasses.is_dataclass(field.type)
        leaves += leaf_fields(field.type) if is_section else [field]
    return leaves


def test_every_field_has_a_type_with_a_name_and_at_most_one_rule() -> None:
    for field in leaf_fields(Job):
        assert field.type in TYPE_NAMES, field.name
        assert set(field.metadata) <= {"choices", "min", "above", "range"}, field.name
        assert len(field.metadata) <= 1, field.name
