"""Which samples of a step are whose: a rank's micro-batches, and its loader processes' parts. Pure.

Processes take turns with their rank's lanes, so that a window is fetched once. Where the lanes do
not divide evenly over them, each takes an equal number of samples instead, and a lane at a border
is read by both neighbours: more bytes, the same batches.
"""

from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Self

import numpy as np

from datasets.order import Ints, Order, micro_batch_positions, micro_batches_of_rank

STEPS_AHEAD = 2  # steps that are fetched and decoded before they are asked for


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

    @property
    def step_samples(self) -> int:
        """Samples of the rank in a step, all its parts together."""
        return self.micro_batch_size * len(self.indices)

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
        if self._has_whole_lanes(order.num_lanes):
            turns = lanes[sequence] // self._stride(order.num_lanes) % self.parts
            mine = sequence[turns == self.part]
        else:
            mine = np.array_split(sequence, self.parts)[self.part]
        return np.asarray(mine, dtype=np.int64)

    def num_lanes(self, lanes: int) -> int:
        """At most how many of the order's lanes the rank, all its parts together, has open."""
        own = self._own_lanes(lanes)
        # A border between two parts can lie in a lane.
        return own if self._has_whole_lanes(lanes) else own + self.parts - 1

    def _stride(self, lanes: int) -> int:
        """A rank's positions are those = rank (mod world_size), where it divides the micro-batches:
        its lanes are this far apart."""
        return gcd(self.world_size, lanes) if self.num_micro_batches % self.world_size == 0 else 1

    def _own_lanes(self, lanes: int) -> int:
        if self.num_micro_batches % self.world_size == 0:
            return lanes // self._stride(lanes)
        # Micro-batch j has the positions = j (mod micro-batches).
        return min(lanes, len(self.indices) * lanes // gcd(self.num_micro_batches, lanes))

    def _has_whole_lanes(self, lanes: int) -> bool:
        is_aligned = self.num_micro_batches % self.world_size == 0
        return self.parts == 1 or (is_aligned and self._own_lanes(lanes) % self.parts == 0)


def loader_bytes(
    share: Share,
    *,
    num_samples: int,
    shard_samples: int,
    sample_bytes: float,
    lanes: int,
    pieces: int,
    slices: int,
    input_size: int,
) -> int:
    """About the most memory that a rank's fetched windows and decoded images take.

    Each open lane holds the window it is in and the one that its look-ahead has reached; between
    them lie the samples that are waited for, STEPS_AHEAD steps to be fetched and as many to be
    decoded. Of decoded images there are these steps, one half begun, the one being trained on and
    the one just taken. shard_samples: of the largest shard; sample_bytes: the mean, so a run of
    larger samples can take more.
    """
    piece = min(shard_samples, ceil(num_samples / lanes))
    window = pieces * ceil(piece / slices)
    step = share.step_samples
    held = 2 * share.num_lanes(lanes) * window + 2 * STEPS_AHEAD * step
    return int(held * sample_bytes) + (STEPS_AHEAD + 3) * step * 3 * input_size**2
