"""The loader behind a faulty network gives the same batches as behind an intact one."""

from itertools import islice
from typing import Any

import pytest
import torch

from datasets.errors import DataError, StoreError
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import EvalLoader
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage import transfer
from datasets.storage.store import Store, StoreConfig
from tests.unit.datasets.faults import FAULTS, NOTHING, faulty
from tests.unit.datasets.loaders import order_of, train_loader

pytestmark = pytest.mark.usefixtures("short_pauses")
STEPS = 34  # an epoch is 29.9
URL = "s3://data/faults"


def packed_at(s3: Store, url: str) -> Manifest:
    rows, classes = digits("train")
    samples = [{**row, "bin": bytes(2000)} for row in rows]  # large enough for faults to hit
    return pack(samples, s3, url, classes=classes, samples_per_shard=200)


@pytest.fixture(scope="module")
def split(s3_url: str) -> Manifest:
    return packed_at(through(s3_url), URL)


@pytest.fixture(scope="module")
def reference(s3_url: str, split: Manifest) -> list[MicroBatch]:
    return train(through(s3_url), split)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence limit of half a second, for tests whose connections stall. The others keep the
    code's half minute: a busy machine may pause for a second."""
    monkeypatch.setattr(transfer, "SILENCE_LIMIT_S", 0.5)


def train(store: Store, manifest: Manifest) -> list[MicroBatch]:
    order = order_of(manifest, seed=1, pieces=2)
    with train_loader(store, manifest, order=order, micro_batch_size=48) as loader:
        return [batch for step in islice(loader, STEPS) for batch in step]


def through(url: str) -> Store:
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


def assert_same(expected: list[MicroBatch], batches: list[MicroBatch]) -> None:
    assert len(expected) == len(batches) == STEPS
    for a, b in zip(expected, batches, strict=True):
        assert torch.equal(a.samples, b.samples)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert bool((a.weights == 1).all())


def alone(*kinds: str) -> list[Any]:
    """Faults that the quick tier has only together with the others."""
    return [pytest.param(kind, marks=pytest.mark.exhaustive) for kind in kinds]


@pytest.mark.parametrize("kind", [*alone(*FAULTS), "all"])
def test_nothing_is_lost_or_twice(
    request: pytest.FixtureRequest, s3_url: str, split: Manifest, reference: list[MicroBatch],
    kind: str,
) -> None:  # fmt: skip
    if kind in ("stall", "all"):
        request.getfixturevalue("impatient")
    shares = dict.fromkeys(FAULTS, 0.06) if kind == "all" else {kind: 0.15}
    with faulty(s3_url, shares, stall_s=1.0, seed=len(kind)) as faults:
        assert_same(reference, train(through(faults.url), split))
        assert sum(faults.seen.values()) >= 10, faults.seen
        assert set(faults.seen) == set(shares)


@pytest.mark.usefixtures("impatient")
def test_a_web_servers_faults_too(
    s3: Store, web_url: str, split: Manifest, reference: list[MicroBatch]
) -> None:
    base, path = web_url.removesuffix("/buckets"), "/buckets/data/faults"
    with faulty(base, dict.fromkeys(FAULTS, 0.06), stall_s=1.0, seed=3) as faults:
        manifest = load_manifest(Store(), f"{faults.url}{path}")
        assert manifest.fingerprint == split.fingerprint
        assert_same(reference, train(Store(), manifest))
        assert sum(faults.seen.values()) >= 10, faults.seen


def test_connections_are_kept(s3: Store, s3_url: str, split: Manifest) -> None:
    """Hundreds of requests over no more connections than there are fetching threads."""
    with faulty(s3_url, {"slow": 0.0}, stall_s=0, seed=0) as proxy:
        train(through(proxy.url), split)
        assert proxy.connections <= 4


def test_a_store_that_stays_unreachable_is_reported(s3_url: str, split: Manifest) -> None:
    with (
        faulty(s3_url, {NOTHING: 1.0}, stall_s=0, seed=0, in_a_row=None) as faults,
        pytest.raises(StoreError, match=r"got 0 of .* a body must arrive whole"),
    ):
        train(through(faults.url), split)


@pytest.mark.parametrize("kind", ["reset", *alone("stall"), "truncated"])
def test_what_came_before_every_break_counts(
    request: pytest.FixtureRequest, s3: Store, s3_url: str, kind: str
) -> None:
    """Eleven connections in a row break within 60 kB of a body, twice as many as may bring
    nothing."""
    if kind == "stall":
        request.getfixturevalue("impatient")
    content = bytes(range(256)) * 4000
    s3.write("s3://data/long", content)
    with faulty(s3_url, {kind: 1.0}, stall_s=0.6, seed=0, in_a_row=11) as faults:
        assert through(faults.url).read("s3://data/long") == content
        assert faults.seen[kind] >= 11


def test_a_shard_that_is_replaced_meanwhile_is_noticed(s3: Store) -> None:
    """Same name and size, other bytes: the ETag differs."""
    split = packed_at(s3, "s3://data/replaced")
    content = bytearray(s3.read(split.shard_url(3)))
    content[600:700] = b"\xff" * 100
    s3.write(split.shard_url(3), bytes(content))
    with pytest.raises(DataError, match="another ETag"):
        train(s3, split)


@pytest.mark.usefixtures("impatient")
def test_evaluation_behind_faults_scores_every_sample_once(s3_url: str, split: Manifest) -> None:
    with faulty(s3_url, dict.fromkeys(FAULTS, 0.06), stall_s=1.0, seed=9) as faults:
        seen = []
        for rank in range(3):
            with EvalLoader(
                through(faults.url), split, rank=rank, world_size=3, batch_size=50, input_size=16
            ) as loader:
                for batch in loader:
                    seen += batch.samples[batch.weights > 0].tolist()
    assert len(seen) == len({tuple(row) for row in seen}) == split.num_samples
