"""Ports of the embedded services, and the reason why one of them ended."""

from pathlib import Path

import pytest

from orchestration.stack import services


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
