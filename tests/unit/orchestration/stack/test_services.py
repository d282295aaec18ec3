"""Ports of the embedded services, and the reason why one of them ended."""

import os
import tempfile
from pathlib import Path

import pytest

from datasets.errors import StoreError
from datasets.storage import socket_folder
from orchestration.stack import services
from orchestration.stack.services import Secrets

SECRETS = Secrets(access_key="a", secret_key="b", ray_token="c", mlflow_token="d")


def test_no_service_gets_a_port_that_another_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = services.free_ports(1)
    monkeypatch.setattr(services, "_reserved", set())
    monkeypatch.setattr(services, "PORT_RANGE", (port, port + 3))
    services.reserve([port, port + 1])
    monkeypatch.setattr(services, "is_port_free", lambda port: True)
    assert services.free_ports(1) == [port + 2]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", "it printed nothing"),
        ("one\n  two \n\n", "two"),
        (
            "a C b) bug. Check failed: server_ The port is 2.\n\n.See x",
            "Check failed: server_ The port is 2.",
        ),
    ],
)
def test_the_log_gives_the_reason(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "log").write_text(log)
    assert services.failure_reason(tmp_path / "log") == reason


def test_sockets_get_a_short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems and macOS set long ones."""
    long = tmp_path / ("x" * 130)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = Path(services.make_ray_folder())
    try:
        assert made.parent == Path("/tmp")
        assert made.stat().st_mode & 0o777 == 0o700
    finally:
        made.rmdir()
    monkeypatch.setattr(socket_folder, "SHORT_FOLDERS", (str(tmp_path / "missing"),))
    with pytest.raises(StoreError, match=rf"^TMPDIR: got {long}, and none .* Set TMPDIR to one\.$"):
        services.make_ray_folder()


def test_the_embedded_store_is_not_the_persons_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "of another store")
    names = [name for name in os.environ if name.startswith("AWS_")]
    for name in [*names, *services.s3_environment(SECRETS)]:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # restored at the end
    services.use_embedded_store(SECRETS)
    assert {n: v for n, v in os.environ.items() if n.startswith("AWS_")} == {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
