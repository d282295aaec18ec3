"""Which samples of a step are whose: a rank's micro-batches, and its loader processes' parts. Pure.

A process takes a run of its rank's lanes, so that a window is fetched once. Where lanes do not
divide evenly over the processes, a lane at a border is read by both neighbours: more bytes, the
same batches.
"""

from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Self

import numpy as np

from datasets.order import Ints, Order, micro_batch_positions, micro_batches_of_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Part `part` of `parts` of what a rank works of each step."""

    rank: int
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    part: int = 0
    parts: int = 1

    def split(self, parts: int) -> list[Self]:
        return [replace(self, part=part, parts=parts) for part in range(parts)]

    @property
    def num_micro_batches(self) -> int:
        return self.global_batch_size // self.micro_batch_size

    @property
    def indices(self) -> range:
        """The rank's micro-batches of a step."""
        return micro_batches_of_rank(
            self.rank, world_size=self.world_size, num_micro_batches=self.num_micro_batches
        )

    def positions(self, step: int) -> Ints:
        """Global positions of the rank's micro-batches: int64 (micro-batches, micro_batch_size)."""
        rows = [
            micro_batch_positions(
                step, j, global_batch=self.global_batch_size, micro_batch=self.micro_batch_size
            )
            for j in self.indices
        ]
        return np.stack(rows) if rows else np.empty((0, self.micro_batch_size), dtype=np.int64)

    def places(self, step: int, order: Order) -> Ints:
        """This part's places in positions(step), flattened: by epoch, lane, position."""
        positions = self.positions(step).ravel()
        lanes = positions % order.num_samples % order.num_lanes
        sequence = np.lexsort((positions, lanes, positions // order.num_samples))
        return np.array_split(sequence, self.parts)[self.part].astype(np.int64)

    def num_lanes(self, lanes: int) -> int:
        """At most how many of the order's lanes the rank, all its parts together, has open."""
        micro_batches = self.num_micro_batches
        if micro_batches % self.world_size == 0:  # its positions are those = rank mod world_size
            own = lanes // gcd(self.world_size, lanes)
        else:
            own = min(lanes, len(self.indices) * lanes // gcd(micro_batches, lanes))
        # A border between two parts can lie in a lane.
        return own if own % self.parts == 0 else own + self.parts - 1


def loader_bytes(
    share: Share, order: Order, *, sample_bytes: float, input_size: int, steps_ahead: int
) -> int:
    """At most this much memory do a rank's fetched windows and decoded images take.

    Each open lane holds its window and the next; of decoded images there are `steps_ahead` steps,
    the one being filled and the one being trained on. sample_bytes: the mean of the split.
    """
    largest = int(order.samples_per_shard.max())
    piece = min(largest, ceil(order.num_samples / order.num_lanes))
    window = order.pieces * ceil(piece / order.slices) * sample_bytes
    step = share.micro_batch_size * len(share.indices) * 3 * input_size**2
    return int(2 * share.num_lanes(order.num_lanes) * window + (steps_ahead + 2) * step)
