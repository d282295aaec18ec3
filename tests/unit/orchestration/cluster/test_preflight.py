"""Checks before a start, and the storage path that Ray gets."""

import pytest

from datasets.storage.store import StoreConfig
from orchestration.cluster.preflight import check_imports
from orchestration.run.storage import ray_path


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
