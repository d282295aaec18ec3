"""The canonical order: which sample stands at which position. Pure; numpy only.

1. Shards are permuted by (seed, epoch) and laid end to end: a virtual sequence of N samples, cut
   into L lanes of N // L (+ 1) consecutive samples. Position p of an epoch is lane p % L,
   index p // L.
2. A lane crosses shards in pieces. S pieces make a group; each is cut at floor((i + u) n / K), u
   drawn from (seed, epoch, lane, group), into K + 1 slices. Window k is slice k of all S pieces,
   permuted by (seed, epoch, lane, group, k): a handful of byte ranges, read once.
3. Global position g runs on over epochs: epoch g // N, p = g % N. Micro-batch j of M holds those
   of a step's positions with g % M == j.

Nothing here knows ranks or loader threads, so neither can change it. Random numbers are raw
Philox words (their stream is fixed by numpy's promise, unlike Generator's methods), and a
permutation is the stable argsort of such words.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError

Ints = NDArray[np.int64]

# First key word beside the seed: one stream of random numbers a purpose.
_SHARDS, _CUTS, _WINDOWS, AUGMENT = range(4)


def random_words(seed: int, purpose: int, a: int, b: int, c: int, count: int) -> NDArray[np.uint64]:
    """`count` uint64 words of the Philox stream keyed (seed, purpose) at (a, b, c)."""
    # A new generator would ask the system for entropy that its key then replaces: a system call a
    # sample. One generator a thread is set to the key and counter instead.
    generator = _thread.generator
    generator.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, a, b, c], dtype=np.uint64),
            "key": np.array([seed, purpose], dtype=np.uint64),
        },
        "buffer": np.zeros(4, dtype=np.uint64),
        "buffer_pos": 4,  # used up: the next word is the first of the counter
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


class _Thread(threading.local):
    """Made anew in each thread."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(0)


_thread = _Thread()


def _unit(word: np.uint64) -> float:
    """A word as a float in [0, 1), 53 bits."""
    return int(word >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive lane indices from `first_index`: what to read, and the order to give it in.

    runs: (shard, first sample, count) of each contiguous run. samples: int64 (n, 2), (shard,
    sample) by lane index.
    """

    first_index: int
    runs: tuple[tuple[int, int, int], ...]
    samples: Ints


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One epoch's virtual sequence: permuted shards, and where each begins."""

    shards: Ints  # (num_shards,)
    starts: Ints  # (num_shards + 1,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order of one split under one job. samples_per_shard: counts in the manifest's order."""

    seed: int
    samples_per_shard: Ints
    num_lanes: int
    pieces: int = 4
    slices: int = 8
    num_samples: int = field(init=False)

    def __post_init__(self) -> None:
        counts = np.asarray(self.samples_per_shard, dtype=np.int64)
        object.__setattr__(self, "samples_per_shard", counts)
        object.__setattr__(self, "num_samples", int(counts.sum()))
        for name in ("num_lanes", "pieces", "slices"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"order.{name}: got {getattr(self, name)}; at least 1. Write 1 or more."
                )
        if self.num_samples < 1 or (len(counts) and counts.min() < 0):
            raise DataError(
                f"order.samples_per_shard: got {self.num_samples} samples; a split has at least "
                "one. Pack it again."
            )
        object.__setattr__(self, "_epoch", lru_cache(maxsize=3)(self._lay_out))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to loader processes without its cache."""
        values = self.seed, self.samples_per_shard, self.num_lanes, self.pieces, self.slices
        return _rebuild, values

    def lane_length(self, lane: int) -> int:
        """Samples of a lane: the first N % L lanes hold one more."""
        base, rest = divmod(self.num_samples, self.num_lanes)
        return base + (lane < rest)

    def windows(self, epoch: int, lane: int, start_index: int = 0) -> Iterator[Window]:
        """The lane's windows from the one that holds `start_index` on.

        To begin anywhere costs a walk over the lane's pieces, never over its samples.
        """
        index = 0
        pieces = self._pieces(epoch, lane)
        for group in range(-(-len(pieces) // self.pieces)):
            members = pieces[group * self.pieces : (group + 1) * self.pieces]
            total = sum(count for _, _, count in members)
            if index + total <= start_index:
                index += total
                continue
            word = random_words(self.seed, _CUTS, epoch, lane, group, 1)[0]
            bounds = [self._bounds(count, _unit(word)) for _, _, count in members]
            for k in range(self.slices + 1):
                runs = tuple(
                    (shard, first + cut[k], cut[k + 1] - cut[k])
                    for (shard, first, _), cut in zip(members, bounds, strict=True)
                    if cut[k + 1] > cut[k]
                )
                size = sum(count for _, _, count in runs)
                if size and index + size > start_index:
                    place = group * (self.slices + 1) + k
                    yield Window(index, runs, self._permuted(epoch, lane, place, runs, size))
                index += size

    def sample_at(self, epoch: int, position: int) -> tuple[int, int]:
        """(shard, sample) at a position 0..N-1 of an epoch; for tools and tests."""
        lane, index = position % self.num_lanes, position // self.num_lanes
        window = next(self.windows(epoch, lane, index))
        shard, sample = window.samples[index - window.first_index]
        return int(shard), int(sample)

    def _lay_out(self, epoch: int) -> _Epoch:
        words = random_words(self.seed, _SHARDS, epoch, 0, 0, len(self.samples_per_shard))
        shards = np.argsort(words, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.samples_per_shard[shards])])
        return _Epoch(shards.astype(np.int64), starts.astype(np.int64))

    def _pieces(self, epoch: int, lane: int) -> list[tuple[int, int, int]]:
        """(shard, first sample, count) of each shard piece that the lane crosses, in order."""
        layout: _Epoch = self._epoch(epoch)  # type: ignore[attr-defined]
        base, rest = divmod(self.num_samples, self.num_lanes)
        begin = lane * base + min(lane, rest)
        end = begin + self.lane_length(lane)
        at = int(np.searchsorted(layout.starts, begin, side="right")) - 1
        pieces = []
        while begin < end:
            stop = min(end, int(layout.starts[at + 1]))
            if stop > begin:
                shard_start = int(layout.starts[at])
                pieces.append((int(layout.shards[at]), begin - shard_start, stop - begin))
            begin = stop
            at += 1
        return pieces

    def _bounds(self, count: int, shift: float) -> list[int]:
        """K + 2 cut points of a piece; the shift moves them from epoch to epoch."""
        inner = [int((i + shift) * count / self.slices) for i in range(self.slices)]
        return [0, *inner, count]

    def _permuted(
        self, epoch: int, lane: int, place: int, runs: tuple[tuple[int, int, int], ...], size: int
    ) -> Ints:
        samples = np.concatenate(
            [
                np.stack([np.full(count, shard), np.arange(first, first + count)], axis=1)
                for shard, first, count in runs
            ]
        )
        words = random_words(self.seed, _WINDOWS, epoch, lane, place, size)
        return np.asarray(samples[np.argsort(words, kind="stable")], dtype=np.int64)


def _rebuild(seed: int, counts: Ints, num_lanes: int, pieces: int, slices: int) -> Order:
    return Order(
        seed=seed, samples_per_shard=counts, num_lanes=num_lanes, pieces=pieces, slices=slices
    )


def micro_batch_positions(step: int, index: int, *, global_batch: int, micro_batch: int) -> Ints:
    """Global positions of micro-batch `index` of step `step`, ascending: int64 (micro_batch,)."""
    num_micro_batches = global_batch // micro_batch
    return step * global_batch + index + num_micro_batches * np.arange(micro_batch, dtype=np.int64)


def eval_batches_of_rank(
    rank: int, *, world_size: int, num_samples: int, batch_size: int
) -> list[tuple[int, int]]:
    """(first position, count) of a rank's evaluation batches: batch b goes to rank b mod W. Every
    sample is in exactly one; the manifest's order, no shuffle."""
    num_batches = -(-num_samples // batch_size)
    return [
        (b * batch_size, min(batch_size, num_samples - b * batch_size))
        for b in range(rank, num_batches, world_size)
    ]
