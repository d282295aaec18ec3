"""Whether a cluster can ever hold a job, said from what its nodes announce."""

from pathlib import Path
from typing import Any

import pytest

from datasets.store import StoreConfig
from orchestration.errors import ServiceError
from orchestration.load import load_job
from orchestration.preflight import check_cluster, check_imports
from orchestration.storage import ray_path

ROOT = Path(__file__).resolve().parents[3]


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "Alive": alive,
        "Resources": {name.replace("__", ":"): amount for name, amount in resources.items()},
    }


H100 = node(CPU=112, GPU=8, accelerator_type__H100=1)
IMAGENET = load_job(ROOT / "jobs" / "imagenet-v3.yaml")  # 4 nodes of H100:8, 14 CPUs a rank


def test_cluster_that_fits() -> None:
    check_cluster(IMAGENET, [H100] * 4)
    check_cluster(load_job(ROOT / "jobs" / "quickstart.yaml"), [node(CPU=2)])


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "room for 0 on 0 nodes"),
        ([H100] * 3, "room for 24 on 3 nodes"),
        ([H100] * 3 + [node(alive=False, CPU=112, GPU=8, accelerator_type__H100=1)], "3 nodes"),
        ([node(CPU=112, GPU=8, accelerator_type__A100=1)] * 4, "(A100)"),
        ([node(CPU=56, GPU=8, accelerator_type__H100=1)] * 4, "room for 16"),
        ([node(CPU=112)] * 4, "no GPU type"),
    ],
)
def test_cluster_that_can_never_fit_is_said(nodes: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ServiceError) as caught:
        check_cluster(IMAGENET, nodes)
    message = str(caught.value)
    assert message.startswith("cluster.accelerators: got H100:8 on 4 nodes")
    assert words in message


def test_our_packages_are_found_under_our_root() -> None:
    check_imports()


@pytest.mark.parametrize(
    ("url", "config", "expected"),
    [
        ("s3://runs/x", StoreConfig(), "s3://runs/x"),
        ("s3://runs", StoreConfig(region="eu-west-1"), "s3://runs?region=eu-west-1"),
        (
            "s3://runs/a",
            StoreConfig(endpoint_url="http://127.0.0.1:8333", region="us-east-1"),
            "s3://runs/a?endpoint_override=127.0.0.1:8333&scheme=http&region=us-east-1",
        ),
        ("file:///data/runs", StoreConfig(), "/data/runs"),
    ],
)
def test_storage_path_of_ray(url: str, config: StoreConfig, expected: str) -> None:
    assert ray_path(url, config) == expected
