"""Checks before a start, and the storage path that Ray gets."""

import os
from pathlib import Path

import pytest

from datasets.errors import DataError
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.storage.checksums import decode_json, encode_json
from datasets.storage.store import Store, StoreConfig
from orchestration.cluster.preflight import check_imports, prepare_data
from orchestration.job.load import load_job
from orchestration.run.storage import ray_path

ROOT = Path(__file__).resolve().parents[4]


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


def test_a_run_says_before_it_starts_what_its_data_cannot_show(tmp_path: Path) -> None:
    """data.verify on a split without checksums is refused; shards that were copied or replaced
    since they were indexed are named, where their bytes are not compared."""
    store = Store()
    for split in ("train", "val"):
        samples, classes = digits(split)
        url = (tmp_path / split).as_uri()
        pack(samples, store, url, classes=classes, samples_per_shard=500)
    urls = [f"data.{split}={(tmp_path / split).as_uri()}" for split in ("train", "val")]
    quickstart = ROOT / "jobs" / "quickstart.yaml"
    job = load_job(quickstart, urls)
    lines: list[str] = []
    assert all(manifest.has_checksums for manifest in prepare_data(job, store, lines.append))
    os.utime(tmp_path / "train" / "shard-000001.tar")
    prepare_data(job, store, lines.append)
    assert lines == []
    unverified = load_job(quickstart, [*urls, "data.verify=false"])
    train, _ = prepare_data(unverified, store, lines.append)
    assert not train.has_checksums
    [line] = lines
    assert "data.train: got 1 shards with other modification times than their index says" in line
    assert "shard-000001.tar" in line
    index = f"{(tmp_path / 'val').as_uri()}/index.json"
    values = decode_json(store.read(index))
    del values["checksums"]
    store.write(index, encode_json(values))
    prepare_data(job, store, lines.append)
    with pytest.raises(DataError, match=r"data\.verify: got true, and no checksums in file://"):
        prepare_data(load_job(quickstart, [*urls, "data.verify=true"]), store, lines.append)
