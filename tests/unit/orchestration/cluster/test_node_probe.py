"""What preflight concludes from the reports of the nodes."""

from dataclasses import replace

import pytest

from orchestration.cluster.node_probe import (
    NodeReport,
    checksum_note,
    compare_versions,
    health_check_note,
)
from orchestration.cluster.versions import versions
from orchestration.manifests.nodes import HEALTH_CHECKS

HEAD = NodeReport(address="10.0.0.1", is_head=True, versions=versions())


def test_same_versions_are_no_word() -> None:
    assert compare_versions([HEAD, replace(HEAD, is_head=False)], versions()) == ([], [])


@pytest.mark.parametrize("name", ["python", "ray", "torch"])
def test_a_node_of_another_version_is_wrong_and_a_laptop_is_noted(name: str) -> None:
    other = versions() | {name: "1.0"}
    node = replace(HEAD, address="10.0.0.2", versions=other)
    problems, notes = compare_versions([HEAD, node], versions())
    assert len(problems) == 1
    assert problems[0].startswith(f"node 10.0.0.2: got {name} 1.0 against {versions()[name]}")
    assert notes == []
    problems, notes = compare_versions([HEAD], other)
    assert problems == []
    assert f"{name} 1.0 against {versions()[name]}" in notes[0]


def test_a_node_that_did_not_answer_differs_in_nothing() -> None:
    assert compare_versions([replace(HEAD, versions={})], versions()) == ([], [])


def test_a_head_with_slow_health_checks_is_noted_with_the_settings_and_their_price() -> None:
    note = health_check_note([HEAD])
    assert note is not None
    for name, value in HEALTH_CHECKS.items():
        assert f"{name}={value}" in note
    assert "price" in note
    assert health_check_note([replace(HEAD, health=dict(HEALTH_CHECKS))]) is None
    assert health_check_note([replace(HEAD, is_head=False)]) is None
    slow = {name: str(10 * int(value)) for name, value in HEALTH_CHECKS.items()}
    assert health_check_note([replace(HEAD, health=slow)]) is not None


def test_nodes_that_compute_checksums_in_python_are_noted_with_the_remedy() -> None:
    slow = replace(HEAD, address="10.0.0.2", crc32c="python")
    note = checksum_note([HEAD, slow])
    assert note is not None
    assert note.startswith("node 10.0.0.2: got google-crc32c without its C library")
    assert "--only-binary :all: google-crc32c" in note
    assert checksum_note([HEAD]) is None
