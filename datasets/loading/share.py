"""How a step is shared out: a rank's micro-batches, and the parts that its loader processes read.

Pure. positions.py has the samples; this module does without numpy, so that `plan` starts fast.
"""

from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Self

STEPS_AHEAD = 2  # steps that are fetched and decoded before they are needed


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Part `part` of `parts` of a rank's samples of each step."""

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
        """Of the global batch."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def indices(self) -> range:
        """The rank's micro-batches of a step: j = rank (mod world_size)."""
        return range(self.rank, self.num_micro_batches, self.world_size)

    @property
    def step_samples(self) -> int:
        """Samples of a step in all parts of the rank."""
        return self.micro_batch_size * len(self.indices)

    @property
    def _is_even(self) -> bool:
        """Whether every rank has equally many micro-batches: its positions are then those = rank
        (mod world_size)."""
        return self.num_micro_batches % self.world_size == 0

    def num_lanes(self, lanes: int) -> int:
        """At most how many of the order's lanes the rank's parts have open, all together."""
        # A border between two parts can be within a lane, which is then open in both.
        borders = 0 if self.has_whole_lanes(lanes) else self.parts - 1
        return self._rank_lanes(lanes) + borders

    def stride(self, lanes: int) -> int:
        """The distance between a rank's lanes."""
        return gcd(self.world_size, lanes) if self._is_even else 1

    def has_whole_lanes(self, lanes: int) -> bool:
        """Whether each part has whole lanes of the rank's, not an equal number of samples."""
        return self.parts == 1 or (self._is_even and self._rank_lanes(lanes) % self.parts == 0)

    def _rank_lanes(self, lanes: int) -> int:
        if self._is_even:
            return lanes // self.stride(lanes)
        # Micro-batch j has the positions = j (mod num_micro_batches).
        return min(lanes, len(self.indices) * lanes // gcd(self.num_micro_batches, lanes))


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

    Each open lane holds its window and the next one, which is read ahead, and between them the
    samples of 2 STEPS_AHEAD steps wait to be fetched and decoded. Decoded images are those of
    STEPS_AHEAD steps, one in progress, one that is trained on and one just handed over.
    shard_samples: of the largest shard. sample_bytes: the mean, so a run of larger samples can take
    more. (The other parameters are an Order's, which needs numpy.)
    """
    piece = min(shard_samples, ceil(num_samples / lanes))
    window = pieces * ceil(piece / slices)
    step = share.step_samples
    encoded = 2 * share.num_lanes(lanes) * window + 2 * STEPS_AHEAD * step
    return int(encoded * sample_bytes) + (STEPS_AHEAD + 3) * step * 3 * input_size**2
