"""The canonical order: which sample is at which position of a training run. Pure; only numpy.

It follows from the seed and the shards' sample counts alone. Ranks and loader processes share it
out and never change it: a run gets the same batches on any number of nodes, and resumes at any
position. Every read is a range of consecutive samples, which suits object storage, and still a
batch draws on the whole data set.

An epoch of N samples; L, S and K are the job's data.shuffle.lanes, pieces and slices:

    shards, shuffled    |   shard 3   |   shard 0   |   shard 2   |   shard 1   |   N samples
    lanes               |      lane 0      |      lane 1      |     lane 2      |   L = 3
    pieces of lane 0    |   shard 3   | s0 |                                        S = 2: a group
    window k of them    slice k of shard 3's piece and slice k of shard 0's, shuffled

1. Lanes. The shards are shuffled by (seed, epoch) and laid end to end. This sequence is cut into L
   lanes of N // L consecutive samples; the first N % L lanes get one more. Position p of the epoch
   is index p // L of lane p % L: neighbours in a batch are from different lanes.
2. Windows. What a lane has of one shard is a piece; S pieces in a row are a group. A piece of n
   samples is cut into K + 1 slices, at (i + u) n / K for i = 0 .. K - 1. The random u in [0, 1) is
   the group's own, so each epoch cuts elsewhere. Window k is slice k of every piece of the group.
3. Samples. Each window is shuffled by (seed, epoch, lane, group, k). It is what is read at a time:
   at most S ranges, once. A lane needs the window that it is in and the next one, which is read
   ahead, so memory depends on L, S, K and the shards' size, not on N. To start at any index costs a
   walk over the lane's pieces, not over its samples.

Positions go on over the epochs: global position g is position g % N of epoch g // N. A step takes
the next global batch; of its positions, micro-batch j of M gets those with g % M == j.

Random numbers are raw words of Philox, a counter-based generator: each is computed from its key
and counter, without the ones before. numpy promises that this stream never changes, which it does
not promise for Generator's methods. A permutation is the stable argsort of such words.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from datasets.errors import DataError

Ints = NDArray[np.int64]
Run = tuple[int, int, int]  # consecutive samples of a shard: (shard, first sample, count)

# The first key word beside the seed: each purpose has a stream of its own.
_SHARDS, _CUTS, _WINDOWS, AUGMENT = range(4)


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.generator = np.random.Philox(0)


_thread = _PerThread()


def random_words(seed: int, purpose: int, a: int, b: int, c: int, count: int) -> NDArray[np.uint64]:
    """`count` uint64 words of the Philox stream keyed (seed, purpose) at counter (a, b, c)."""
    # A new generator would ask the system for entropy that its key then replaces: a system call
    # per sample. Instead each thread has one, which is set to the key and counter.
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


def random_floats(seed: int, purpose: int, a: int, b: int, c: int, count: int) -> list[float]:
    """The words as floats in [0, 1), of 53 bits each."""
    words = random_words(seed, purpose, a, b, c, count)
    floats: list[float] = ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    return floats


def permutation(seed: int, purpose: int, a: int, b: int, c: int, count: int) -> Ints:
    """A permutation of 0 .. count - 1 that the words decide: int64 (count,)."""
    words = random_words(seed, purpose, a, b, c, count)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Consecutive samples of a lane, from lane index `first_index` on.

    runs: what to read. samples: int64 (n, 2), (shard, sample) in lane order.
    """

    first_index: int
    runs: tuple[Run, ...]
    samples: Ints

    @property
    def end_index(self) -> int:
        return self.first_index + len(self.samples)


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

    def lane_length(self, lane: int) -> int:
        """Samples of a lane in an epoch."""
        base, rest = divmod(self.num_samples, self.num_lanes)
        return base + (lane < rest)

    def windows(self, epoch: int, lane: int, start_index: int = 0) -> Iterator[Window]:
        """The lane's windows, from the one that holds lane index `start_index` on."""
        index = 0
        pieces = self._pieces(epoch, lane)
        for group, first_piece in enumerate(range(0, len(pieces), self.pieces)):
            members = pieces[first_piece : first_piece + self.pieces]
            group_size = sum(count for _, _, count in members)
            if index + group_size <= start_index:
                index += group_size
                continue
            shift = random_floats(self.seed, _CUTS, epoch, lane, group, 1)[0]
            cuts = [self._cuts(count, shift) for _, _, count in members]
            for k in range(self.slices + 1):
                runs = tuple(
                    (shard, first + cut[k], cut[k + 1] - cut[k])
                    for (shard, first, _), cut in zip(members, cuts, strict=True)
                    if cut[k + 1] > cut[k]
                )
                size = sum(count for _, _, count in runs)
                if size and index + size > start_index:
                    number = group * (self.slices + 1) + k
                    shuffled = permutation(self.seed, _WINDOWS, epoch, lane, number, size)
                    yield Window(index, runs, _samples_of(runs)[shuffled])
                index += size

    def _pieces(self, epoch: int, lane: int) -> list[Run]:
        """What the lane has of each shard that it crosses, in order."""
        shards, starts = _shuffled_shards(self, epoch)
        base, rest = divmod(self.num_samples, self.num_lanes)
        begin = lane * base + min(lane, rest)
        end = begin + self.lane_length(lane)
        at = int(np.searchsorted(starts, begin, side="right")) - 1
        pieces = []
        while begin < end:
            stop = min(end, int(starts[at + 1]))
            if stop > begin:
                pieces.append((int(shards[at]), begin - int(starts[at]), stop - begin))
            begin = stop
            at += 1
        return pieces

    def _cuts(self, count: int, shift: float) -> list[int]:
        """The K + 2 bounds of a piece's slices."""
        inner = [int((i + shift) * count / self.slices) for i in range(self.slices)]
        return [0, *inner, count]


@lru_cache(maxsize=3)  # around an epoch's end, two are in use
def _shuffled_shards(order: Order, epoch: int) -> tuple[Ints, Ints]:
    """(shards, starts): the epoch's sequence of shards, int64 (num_shards,), and the place in it
    where each one begins, then its end, int64 (num_shards + 1,)."""
    shards = permutation(order.seed, _SHARDS, epoch, 0, 0, len(order.samples_per_shard))
    starts = np.concatenate([[0], np.cumsum(order.samples_per_shard[shards])])
    return shards, starts.astype(np.int64, copy=False)


def _samples_of(runs: tuple[Run, ...]) -> Ints:
    """(shard, sample) of every sample: int64 (n, 2)."""
    parts = [
        np.stack([np.full(count, shard), np.arange(first, first + count)], axis=1)
        for shard, first, count in runs
    ]
    return np.concatenate(parts).astype(np.int64, copy=False)


def micro_batch_positions(step: int, index: int, *, global_batch: int, micro_batch: int) -> Ints:
    """Global positions of micro-batch `index` of a step, ascending: int64 (micro_batch,)."""
    num_micro_batches = global_batch // micro_batch
    return step * global_batch + index + num_micro_batches * np.arange(micro_batch, dtype=np.int64)


def eval_batches_of_rank(
    rank: int, *, world_size: int, num_samples: int, batch_size: int
) -> list[tuple[int, int]]:
    """(first position, count) of a rank's evaluation batches, in the manifest's order: batch b
    goes to rank b mod world_size, and the split's last batch may be smaller."""
    num_batches = -(-num_samples // batch_size)
    return [
        (b * batch_size, min(batch_size, num_samples - b * batch_size))
        for b in range(rank, num_batches, world_size)
    ]
