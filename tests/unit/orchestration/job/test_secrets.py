"""No secret gets into a job, which is logged to MLflow, stored with the run and sent to nodes."""

from pathlib import Path

import pytest

from orchestration.errors import JobError
from orchestration.job.load import load_job

JOB = Path(__file__).resolve().parents[4] / "jobs" / "quickstart.yaml"
NAMES = [
    "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "MY_KEY", "ENCRYPTION_KEY",
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "APP_SECRET", "db_password",
    "SSH_PASSPHRASE", "GOOGLE_APPLICATION_CREDENTIALS", "OPENAI_API_KEY",
]  # fmt: skip
VALUE = "hunter2hunter2"


def refused(*overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load_job(JOB, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert VALUE not in message
    return message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_set", [True, False])
def test_a_secret_variable_cannot_be_interpolated(
    name: str, is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """allenai/rslearn#687, zenml-io/zenml#2443: resolved credentials were logged to a tracker."""
    if is_set:
        monkeypatch.setenv(name, VALUE)
    message = refused(f"tracking.experiment=${{oc.env:{name}}}")
    assert message.startswith(f"tracking.experiment: got ${{oc.env:{name}}}, a variable that holds")
    assert "Remove it" in message


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:MY_KEY,default}",
        "a-${oc.env:MY_KEY}-b",
        "${oc.env: MY_KEY }",
        "${oc.env:${oc.env:NAME_OF_IT}}",
        "${oc.decode:${oc.env:MY_KEY}}",
        "${oc.env:NOT_SET,${oc.env:MY_KEY}}",
        "${storage.region}",
    ],
)
def test_no_way_round(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """hydra-ecosystem/hydra#2249 recommends oc.env for secrets, which then are in the config."""
    monkeypatch.setenv("MY_KEY", VALUE)
    monkeypatch.setenv("NAME_OF_IT", "MY_KEY")
    overrides = ["storage.region=${oc.env:MY_KEY}"] if value.startswith("${storage") else []
    assert "${oc.env:MY_KEY}" in refused(*overrides, f'tracking.experiment="{value}"')


def test_in_a_file_a_list_and_an_inherited_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", VALUE)
    base = tmp_path / "base.yaml"
    base.write_text('cluster: {environment: {pip: [torch, "${oc.env:MY_KEY}"]}}')
    (tmp_path / "job.yaml").write_text(f"inherits: [{JOB}, base.yaml]")
    with pytest.raises(
        JobError, match=r"^cluster\.environment\.pip\[1\]: got \$\{oc\.env:MY_KEY\}"
    ):
        load_job(tmp_path / "job.yaml")
    base.write_text('inherits: "${oc.env:MY_KEY}"')
    with pytest.raises(JobError, match=r"^inherits: got \$\{oc\.env:MY_KEY\}"):
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_URI", "TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "USER_NAME"]
)
def test_other_variables_go_on_working(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "https://mlflow.example.org")
    job = load_job(JOB, [f"tracking.uri=${{oc.env:{name}}}"])
    assert job.tracking.uri == "https://mlflow.example.org"
    job = load_job(JOB, ["tracking.uri=${oc.env:NOT_SET_AT_ALL,http://mlflow:5000}"])
    assert job.tracking.uri == "http://mlflow:5000"


URL = f"https://user:{VALUE}@example.org/path"


@pytest.mark.parametrize(
    "override",
    [
        f"tracking.uri={URL}",
        "tracking.uri=${oc.env:ADDRESS_OF_IT}",
        f"tracking.experiment={URL}",
        f"storage.endpoint_url={URL}",
        f"cluster.address={URL}",
        f"checkpoint.storage={URL}",
        f"checkpoint.storage=s3://user:{VALUE}@bucket/path",
        f"data.train=s3://user:{VALUE}@bucket/path",
        f"data.train={URL}",
        f"model.init_from=s3://user:{VALUE}@bucket/weights.pt",
        f"cluster.environment.image={URL}",
        f"cluster.environment.pip=['--extra-index-url={URL}']",
        f"cluster.environment.pip=['git+https://{VALUE}@example.org/x.git']",
        f"cluster.environment.variables={{HTTPS_PROXY: '{URL}'}}",
    ],
)
def test_no_url_with_a_password(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """BinItAI/visdet#551 has a tracking URI with user and password in its configuration."""
    monkeypatch.setenv("ADDRESS_OF_IT", URL)
    message = refused(override)
    assert message.startswith(override.partition("=")[0])


def test_a_user_of_ssh_is_no_secret() -> None:
    pip = "git+ssh://git@example.org/team/x.git"
    job = load_job(JOB, [f"cluster.environment.pip=['{pip}']"])
    assert job.cluster.environment.pip == [pip]
