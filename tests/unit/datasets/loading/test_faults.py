"""The loader behind a network that breaks: what comes out is what comes out of an unbroken one."""

from itertools import islice
from typing import Any

import pytest
import torch

from datasets.errors import DataError, StoreError
from datasets.images.augment import Augment
from datasets.loading.batch import MicroBatch
from datasets.loading.loader import EvalLoader, TrainLoader
from datasets.order import Order
from datasets.packing.pack import pack
from datasets.packing.sources import digits
from datasets.shards.manifest import Manifest, load_manifest
from datasets.storage import transfer
from datasets.storage.store import Store, StoreConfig
from tests.unit.datasets.faults import FAULTS, NOTHING, faulty

pytestmark = pytest.mark.usefixtures("short_pauses")
STEPS = 34  # 29.9 are an epoch
URL = "s3://data/faults"


def packed_at(s3: Store, url: str) -> Manifest:
    rows, classes = digits("train")
    samples = [{**row, "bin": bytes(2000)} for row in rows]  # some weight for a fault to hit
    return pack(samples, s3, url, classes=classes, samples_per_shard=200)


@pytest.fixture(scope="module")
def split(s3_url: str) -> Manifest:
    return packed_at(through(s3_url), URL)


@pytest.fixture(scope="module")
def unbroken(s3_url: str, split: Manifest) -> list[MicroBatch]:
    return train(through(s3_url), split)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of silence is too long where connections fall silent. Other tests wait the
    half minute of the code itself: a machine that is busy elsewhere may pause for a second."""
    monkeypatch.setattr(transfer, "SILENCE_LIMIT_S", 0.5)


def train(store: Store, manifest: Manifest) -> list[MicroBatch]:
    order = Order(
        seed=1, samples_per_shard=manifest.samples_per_shard, num_lanes=6, pieces=2, slices=4
    )
    with TrainLoader(
        store, manifest, order, rank=0, world_size=1, global_batch_size=48, micro_batch_size=48,
        input_size=16, augment=Augment(),
    ) as loader:  # fmt: skip
        return [batch for step in islice(loader, STEPS) for batch in step]


def through(url: str) -> Store:
    return Store(StoreConfig(endpoint_url=url, region="us-east-1", addressing="path"))


def assert_same(one: list[MicroBatch], other: list[MicroBatch]) -> None:
    assert len(one) == len(other) == STEPS
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.samples, b.samples)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets, b.targets)
        assert bool((a.weights == 1).all())


def alone(*kinds: str) -> list[Any]:
    """Kinds of faults that the quick tier meets among the others alone."""
    return [pytest.param(kind, marks=pytest.mark.exhaustive) for kind in kinds]


@pytest.mark.parametrize("kind", [*alone(*FAULTS), "all"])
def test_nothing_is_lost_or_twice(
    request: pytest.FixtureRequest, s3_url: str, split: Manifest, unbroken: list[MicroBatch],
    kind: str,
) -> None:  # fmt: skip
    if kind in ("stall", "all"):
        request.getfixturevalue("impatient")
    shares = dict.fromkeys(FAULTS, 0.06) if kind == "all" else {kind: 0.15}
    with faulty(s3_url, shares, stall_s=1.0, seed=len(kind)) as faults:
        assert_same(unbroken, train(through(faults.url), split))
        assert sum(faults.seen.values()) >= 10, faults.seen
        assert set(faults.seen) == set(shares)


@pytest.mark.usefixtures("impatient")
def test_a_web_servers_faults_too(
    s3: Store, web_url: str, split: Manifest, unbroken: list[MicroBatch]
) -> None:
    base, path = web_url.removesuffix("/buckets"), "/buckets/data/faults"
    with faulty(base, dict.fromkeys(FAULTS, 0.06), stall_s=1.0, seed=3) as faults:
        found = load_manifest(Store(), f"{faults.url}{path}")
        assert found.fingerprint == split.fingerprint
        assert_same(unbroken, train(Store(), found))
        assert sum(faults.seen.values()) >= 10, faults.seen


def test_connections_are_kept(s3: Store, s3_url: str, split: Manifest) -> None:
    """Hundreds of requests over no more connections than fetching threads."""
    with faulty(s3_url, {"slow": 0.0}, stall_s=0, seed=0) as proxy:
        train(through(proxy.url), split)
        assert proxy.connections <= 4


def test_a_store_that_stays_away_is_told(s3_url: str, split: Manifest) -> None:
    with (
        faulty(s3_url, {NOTHING: 1.0}, stall_s=0, seed=0, in_a_row=None) as faults,
        pytest.raises(StoreError, match=r"got 0 of .* a body must arrive whole"),
    ):
        train(through(faults.url), split)


@pytest.mark.parametrize("kind", ["reset", *alone("stall"), "truncated"])
def test_what_came_before_every_break_counts(
    request: pytest.FixtureRequest, s3: Store, s3_url: str, kind: str
) -> None:
    """Eleven connections in a row end within 60 kB of a body, twice what may bring nothing."""
    if kind == "stall":
        request.getfixturevalue("impatient")
    content = bytes(range(256)) * 4000
    s3.write("s3://data/long", content)
    with faulty(s3_url, {kind: 1.0}, stall_s=0.6, seed=0, in_a_row=11) as faults:
        assert through(faults.url).read("s3://data/long") == content
        assert faults.seen[kind] >= 11


def test_a_shard_that_is_replaced_meanwhile_is_noticed(s3: Store) -> None:
    """The same sizes and names, other bytes: the ETag tells."""
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
