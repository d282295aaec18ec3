"""What preflight makes of what the nodes said of themselves."""

from dataclasses import replace

import pytest

from orchestration.cluster.node_probe import NodeAnswer, differences, slow_to_notice
from orchestration.cluster.versions import versions
from orchestration.manifests.nodes import HEALTH_CHECKS

HERE = NodeAnswer(
    address="10.0.0.1", is_head=True, versions=versions(), problems={}, health={}, stop_signal=None
)


def test_same_versions_are_no_word() -> None:
    assert differences([HERE, replace(HERE, is_head=False)], versions()) == ([], [])


@pytest.mark.parametrize("name", ["python", "ray", "torch"])
def test_a_node_of_another_version_is_wrong_and_a_laptop_is_noted(name: str) -> None:
    other = versions() | {name: "1.0"}
    node = replace(HERE, address="10.0.0.2", versions=other)
    wrong, notes = differences([HERE, node], versions())
    assert len(wrong) == 1
    assert wrong[0].startswith(f"node 10.0.0.2: got {name} 1.0 against {versions()[name]}")
    assert notes == []
    wrong, notes = differences([HERE], other)
    assert wrong == []
    assert f"{name} 1.0 against {versions()[name]}" in notes[0]


def test_a_node_that_did_not_answer_differs_in_nothing() -> None:
    assert differences([replace(HERE, versions={})], versions()) == ([], [])


def test_a_head_of_rays_own_patience_is_told_with_the_settings_and_their_price() -> None:
    told = slow_to_notice([HERE])
    assert told is not None
    for name, value in HEALTH_CHECKS.items():
        assert f"{name}={value}" in told
    assert "price" in told
    assert slow_to_notice([replace(HERE, health=dict(HEALTH_CHECKS))]) is None
    assert slow_to_notice([replace(HERE, is_head=False)]) is None
    patient = {name: str(10 * int(value)) for name, value in HEALTH_CHECKS.items()}
    assert slow_to_notice([replace(HERE, health=patient)]) is not None
