"""How much of a step is whose: a rank's micro-batches, and its loader processes' parts. Pure.

Which positions that are, positions.py says; here nothing needs numpy, and `plan` answers sooner.
"""

from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Self

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
        """The rank's micro-batches of a step: j = rank mod world_size."""
        return range(self.rank, self.num_micro_batches, self.world_size)

    @property
    def step_samples(self) -> int:
        """Samples of the rank in a step, all its parts together."""
        return self.micro_batch_size * len(self.indices)

    def num_lanes(self, lanes: int) -> int:
        """At most how many of the order's lanes the rank, all its parts together, has open."""
        own = self._own_lanes(lanes)
        # A border between two parts can lie in a lane.
        return own if self.has_whole_lanes(lanes) else own + self.parts - 1

    def stride(self, lanes: int) -> int:
        """A rank's positions are those = rank (mod world_size), where it divides the micro-batches:
        its lanes are this far apart."""
        return gcd(self.world_size, lanes) if self.num_micro_batches % self.world_size == 0 else 1

    def _own_lanes(self, lanes: int) -> int:
        if self.num_micro_batches % self.world_size == 0:
            return lanes // self.stride(lanes)
        # Micro-batch j has the positions = j (mod micro-batches).
        return min(lanes, len(self.indices) * lanes // gcd(self.num_micro_batches, lanes))

    def has_whole_lanes(self, lanes: int) -> bool:
        """Whether each part takes whole lanes of the rank's, not an equal number of samples."""
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
