"""What a command sends to a remote cluster."""

from typing import Any

import pytest

from orchestration.cli import submissions
from orchestration.cli.submissions import submit_from_run


class Client:
    """Takes submissions instead of a cluster."""

    address = "http://head:8265"

    def __init__(self) -> None:
        self.names: list[str] = []

    def submit_command(self, arguments: Any, *, name: str) -> str:
        self.names.append(name)
        return f"{name}-1a2b3c4d"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://runs/Quickstart_2026", "quickstart-2026"),
        ("no-url", "no-url"),  # the cluster refuses it
        ("s3://runs/a/", "fork"),
    ],
)
def test_a_submission_is_named_like_its_run(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client()
    monkeypatch.setattr(submissions, "_jobs_client", lambda address: client)
    submit_from_run(("fork", url), None, client.address, as_json=True)
    assert client.names == [name]
