"""The canonical order: every sample once, the same on any cluster, resumable anywhere."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.errors import DataError
from datasets.loading.share import Share
from datasets.order import Order, eval_batches_of_rank, micro_batch_positions, random_words

shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "samples_per_shard": st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
        "num_lanes": st.integers(1, 9),
        "pieces": st.integers(1, 5),
        "slices": st.integers(1, 6),
    }
).map(lambda v: Order(**v | {"samples_per_shard": np.array(v["samples_per_shard"])}))  # type: ignore[arg-type]


def whole_epoch(order: Order, epoch: int) -> list[tuple[int, int]]:
    """(shard, sample) of every position of an epoch."""
    lanes = []
    for lane in range(order.num_lanes):
        rows = [window.samples for window in order.windows(epoch, lane)]
        lanes.append(np.concatenate(rows) if rows else np.empty((0, 2), dtype=np.int64))
    return [
        tuple(lanes[p % order.num_lanes][p // order.num_lanes].tolist())
        for p in range(order.num_samples)
    ]


@given(order=shapes, epoch=st.integers(0, 3))
def test_each_sample_exactly_once_an_epoch(order: Order, epoch: int) -> None:
    expected = {(s, i) for s, n in enumerate(order.samples_per_shard) for i in range(n)}
    samples = whole_epoch(order, epoch)
    assert len(samples) == len(expected)
    assert set(samples) == expected


@given(order=shapes, epoch=st.integers(0, 3), data=st.data())
def test_starting_anywhere_is_the_tail(order: Order, epoch: int, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, order.num_lanes - 1))
    length = order.lane_length(lane)
    if length == 0:
        assert list(order.windows(epoch, lane)) == []
        return
    start = data.draw(st.integers(0, length - 1))
    windows = list(order.windows(epoch, lane, start))
    tail = np.concatenate([w.samples for w in windows])[start - windows[0].first_index :]
    unbroken = np.concatenate([w.samples for w in order.windows(epoch, lane)])[start:]
    assert np.array_equal(tail, unbroken)
    assert windows[0].first_index <= start


@given(order=shapes, epoch=st.integers(0, 3))
def test_runs_name_exactly_the_windows_samples(order: Order, epoch: int) -> None:
    for lane in range(order.num_lanes):
        index = 0
        for window in order.windows(epoch, lane):
            assert window.first_index == index
            index = window.end_index
            rows = [(s, i) for s, first, n in window.runs for i in range(first, first + n)]
            assert sorted(rows) == sorted(map(tuple, window.samples.tolist()))
            assert len(window.runs) <= order.pieces
            # Memory: a window holds at most one slice of each of its pieces.
            assert all(n <= -(-60 // order.slices) + 1 for _, _, n in window.runs)
        assert index == order.lane_length(lane)


@given(
    micro=st.integers(1, 8),
    num_micro_batches=st.integers(1, 12),
    world_size=st.integers(1, 12),
    step=st.integers(0, 50),
)
def test_micro_batches_do_not_depend_on_the_world_size(
    micro: int, num_micro_batches: int, world_size: int, step: int
) -> None:
    batch = micro * num_micro_batches
    by_index: dict[int, list[int]] = {}
    for rank in range(world_size):
        share = Share(
            rank=rank, world_size=world_size, global_batch_size=batch, micro_batch_size=micro
        )
        for j in share.indices:
            positions = micro_batch_positions(step, j, global_batch=batch, micro_batch=micro)
            assert (positions % num_micro_batches == j).all()
            assert j not in by_index
            by_index[j] = positions.tolist()
    everything = sorted(itertools.chain.from_iterable(by_index.values()))
    assert everything == list(range(step * batch, (step + 1) * batch))


@given(num_samples=st.integers(1, 300), batch_size=st.integers(1, 40), world_size=st.integers(1, 9))
def test_evaluation_covers_each_sample_once(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    seen = [
        position
        for rank in range(world_size)
        for first, size in eval_batches_of_rank(
            rank, world_size=world_size, num_samples=num_samples, batch_size=batch_size
        )
        for position in range(first, first + size)
    ]
    assert sorted(seen) == list(range(num_samples))


def test_epochs_and_seeds_give_other_orders() -> None:
    def order(seed: int) -> Order:
        return Order(seed=seed, samples_per_shard=np.full(8, 50), num_lanes=4, pieces=2, slices=4)

    first = whole_epoch(order(0), 0)
    assert first == whole_epoch(order(0), 0)
    assert first != whole_epoch(order(0), 1)
    assert first != whole_epoch(order(1), 0)


def test_batches_mix_shards() -> None:
    """256 consecutive positions of 1,000 shards hold well over a hundred shards."""
    order = Order(seed=0, samples_per_shard=np.full(1000, 100), num_lanes=64, pieces=4, slices=16)
    shards = {shard for shard, _ in whole_epoch(order, 0)[5120:5376]}
    assert len(shards) > 120


def test_order_is_the_same_for_ever() -> None:
    """Golden values: another order would break every resume across versions."""
    assert random_words(7, 2, 1, 2, 3, 2).tolist() == [5339091793989587158, 10187802976215668324]
    order = Order(seed=7, samples_per_shard=np.array([5, 3, 7]), num_lanes=2, pieces=2, slices=2)
    assert whole_epoch(order, 1)[:6] == [(2, 0), (0, 2), (2, 2), (0, 0), (2, 1), (0, 1)]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"order.num_lanes: got 0"):
        Order(seed=0, samples_per_shard=np.array([1]), num_lanes=0)
    with pytest.raises(DataError, match="at least one"):
        Order(seed=0, samples_per_shard=np.array([0, 0]), num_lanes=1)


@settings(deadline=None)
@given(lane=st.integers(0, 4 * 4096 - 1), share=st.floats(0, 0.999))
def test_a_billion_samples_in_a_hundred_thousand_shards(lane: int, share: float) -> None:
    """4,096 ranks of four lanes: a rank has 1e5 shard starts in memory, never the samples; to
    start at 99 % costs as much as at 1 %."""
    index = int(share * BILLION.lane_length(lane))
    start = time.process_time()
    window = next(BILLION.windows(0, lane, index))
    assert window.first_index <= index < window.end_index
    assert time.process_time() - start < 5  # against a hang; not a benchmark


BILLION = Order(
    seed=0,
    samples_per_shard=np.full(100_000, 10_000),
    num_lanes=4 * 4096,
    pieces=4,
    slices=16,
)
