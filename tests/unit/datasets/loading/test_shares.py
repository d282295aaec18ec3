"""How a step is shared out: parts of ranks are a partition and have few lanes open."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.loading.positions import plan_step
from datasets.loading.share import Share, loader_bytes
from datasets.order import Order, micro_batch_positions


def order_of(counts: list[int], lanes: int) -> Order:
    return Order(seed=5, samples_per_shard=np.array(counts), num_lanes=lanes, pieces=2, slices=3)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda c: sum(c) > 0),
    lanes=st.integers(1, 24), micro_batch=st.integers(1, 6), micro_batches=st.integers(1, 9),
    world_size=st.integers(1, 10), parts=st.integers(1, 7), step=st.integers(0, 200),
)  # fmt: skip
def test_ranks_and_their_parts_are_a_partition_of_every_step(
    counts: list[int], lanes: int, micro_batch: int, micro_batches: int, world_size: int,
    parts: int, step: int,
) -> None:  # fmt: skip
    """For any shards, ranks, loader processes and step to resume at: every sample of the step
    once, in its own row, and no more open lanes than the share states."""
    order = order_of(counts, lanes)
    batch = micro_batch * micro_batches
    seen: list[int] = []
    for rank in range(world_size):
        whole = Share(
            rank=rank, world_size=world_size, global_batch_size=batch,
            micro_batch_size=micro_batch,
        )  # fmt: skip
        by_row = [
            position
            for j in whole.indices
            for position in micro_batch_positions(
                step, j, global_batch=batch, micro_batch=micro_batch
            ).tolist()
        ]
        opened = set()
        rows: list[int] = []
        for share in whole.split(parts):
            plan = plan_step(share, step, order)
            assert plan.positions.tolist() == [by_row[row] for row in plan.rows]
            rows += plan.rows.tolist()
            epochs_and_lanes = [
                (p // order.num_samples, p % order.num_samples % lanes)
                for p in plan.positions.tolist()
            ]
            assert epochs_and_lanes == sorted(epochs_and_lanes)
            opened |= {(share.part, *epoch_and_lane) for epoch_and_lane in epochs_and_lanes}
        assert sorted(rows) == list(range(len(by_row)))
        seen += by_row
        for epoch in {epoch for _, epoch, _ in opened}:
            of_epoch = [lane for lane in opened if lane[1] == epoch]
            assert len(of_epoch) <= share.num_lanes(lanes)
    assert sorted(seen) == list(range(step * batch, (step + 1) * batch))


def test_processes_that_divide_the_lanes_open_each_lane_once() -> None:
    order = order_of([100] * 16, 32)
    opened: list[int] = []
    for rank in range(4):
        share = Share(rank=rank, world_size=4, global_batch_size=96, micro_batch_size=8)
        for part in share.split(4):
            lanes = set()
            for step in range(16):  # one epoch, so that no lane is opened twice
                positions = plan_step(part, step, order).positions
                lanes |= {int(p) % order.num_lanes for p in positions}
            opened += lanes
    assert sorted(opened) == list(range(32))


def test_memory_follows_the_shuffle_and_not_the_data_set() -> None:
    share = Share(rank=0, world_size=4, global_batch_size=64, micro_batch_size=16)
    sizes = {"shard_samples": 1000, "sample_bytes": 100_000.0, "slices": 10, "input_size": 299}
    small = loader_bytes(share, num_samples=10**6, lanes=16, pieces=2, **sizes)  # type: ignore[arg-type]
    ahead = 5 * 16 * 3 * 299**2 + 4 * 16 * 100_000
    assert small == 2 * 4 * (2 * 100 * 100_000) + ahead
    for more, lanes, pieces, factor in ((10**9, 16, 2, 1), (10**6, 16, 4, 2), (10**6, 32, 2, 2)):
        size = loader_bytes(share, num_samples=more, lanes=lanes, pieces=pieces, **sizes)  # type: ignore[arg-type]
        assert size - ahead == factor * (small - ahead)
