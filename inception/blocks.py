"""Inception blocks as data: parallel branches whose outputs are concatenated. No torch here.

A description is enough to count parameters and multiply-adds (cost.py) and to build the modules
(network.py). Names in the state dict follow one law, which is torchvision's inception_v3's: a
branch's only convolution is named like the branch (`branch1x1`), those of a chain are numbered
(`branch3x3dbl_1`, `_2`), and those of a fork get letters (`branch3x3_2a`, `_2b`). Pools carry no
weights and no number. Networks whose released weights were written by a Sequential say so
(`Law.SEQUENTIAL`: `branch3.0`, pools counted), or number from zero (`Law.FROM_ZERO`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

Pair = tuple[int, int]
Scale = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution without bias + batch norm + activation; has_norm False: with bias instead of
    batch norm; is_linear: without activation."""

    channels: int
    kernel: Pair
    stride: int = 1
    padding: Pair = (0, 0)
    has_norm: bool = True
    is_linear: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """A 3x3 pool (other sizes by `kernel`). counts_padding: averages count the padding, as
    torchvision's do and TensorFlow's do not. rounds_up: a last, partial window counts, as in
    GoogLeNet (TensorFlow's SAME)."""

    kind: str  # "max" or "avg"
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    counts_padding: bool = True
    rounds_up: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """Convolutions side by side on the same input, concatenated."""

    outputs: tuple[Conv, ...]


Layer = Conv | Pool | Fork


class Law(Enum):
    """How a chain's convolutions are named in the state dict."""

    NUMBERED = "from one, pools not counted"
    FROM_ZERO = "from zero, pools not counted"
    SEQUENTIAL = "by a Sequential's index, pools counted"


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain of layers. `names[i]` are the state-dict names of layer i's convolutions."""

    name: str
    layers: tuple[Layer, ...]
    law: Law = Law.NUMBERED
    names: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self._names()))

    def _names(self) -> Iterator[tuple[str, ...]]:
        numbered = [layer for layer in self.layers if not isinstance(layer, Pool)]
        number = 0 if self.law is Law.FROM_ZERO else 1
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Pool):
                yield ()
                continue
            if self.law is Law.SEQUENTIAL:
                base = self.name if len(self.layers) == 1 else f"{self.name}.{place}"
            else:
                base = self.name if len(numbered) == 1 else f"{self.name}_{number}"
            number += 1
            if isinstance(layer, Conv):
                yield (base,)
            else:
                yield tuple(f"{base}{'abcdefgh'[i]}" for i in range(len(layer.outputs)))


@dataclass(frozen=True, slots=True)
class Block:
    """Named parallel branches over one input."""

    name: str
    branches: tuple[Branch, ...]


def square(channels: int, size: int, *, stride: int = 1, same: bool = False) -> Conv:
    """A size x size convolution; `same` keeps the grid."""
    pad = size // 2 if same else 0
    return Conv(channels, (size, size), stride, (pad, pad))


def line(channels: int, *, height: int = 1, width: int = 1) -> Conv:
    """Half of a factorized convolution, 1 x n or n x 1; keeps the grid."""
    return Conv(channels, (height, width), 1, (height // 2, width // 2))


def pooled(channels: int, kind: str = "avg") -> Branch:
    """The pool branch: a 3x3 pool, then 1x1."""
    return Branch("branch_pool", (Pool(kind, padding=1), square(channels, 1)))


def block_a(
    name: str, s: Scale, *, pool_channels: int, pool: str = "avg", middle: int = 5
) -> Block:
    """35x35 (paper, figure 5): the 5x5 as two 3x3, beside a plain 5x5 in the released graph.
    middle: the kernel of that branch, 3 in the figure."""
    size = f"branch{middle}x{middle}"
    return Block(
        name,
        (
            Branch("branch1x1", (square(s(64), 1),)),
            Branch(size, (square(s(48), 1), square(s(64), middle, same=True))),
            Branch(
                "branch3x3dbl",
                (square(s(64), 1), square(s(96), 3, same=True), square(s(96), 3, same=True)),
            ),
            pooled(s(pool_channels), pool),
        ),
    )


def reduction_a(name: str, s: Scale) -> Block:
    """35x35 -> 17x17 (paper, figure 10): stride-2 convolutions beside a stride-2 pool."""
    return Block(
        name,
        (
            Branch("branch3x3", (square(s(384), 3, stride=2),)),
            Branch(
                "branch3x3dbl",
                (square(s(64), 1), square(s(96), 3, same=True), square(s(96), 3, stride=2)),
            ),
            Branch("branch_pool", (Pool("max", stride=2),)),
        ),
    )


def block_b(name: str, s: Scale, *, channels: int, n: int = 7, pool: str = "avg") -> Block:
    """17x17 (paper, figure 6): n x n as 1 x n and n x 1. The double branch begins with n x 1."""
    c, out = s(channels), s(192)
    return Block(
        name,
        (
            Branch("branch1x1", (square(out, 1),)),
            Branch(f"branch{n}x{n}", (square(c, 1), line(c, width=n), line(out, height=n))),
            Branch(
                f"branch{n}x{n}dbl",
                (
                    square(c, 1),
                    line(c, height=n),
                    line(c, width=n),
                    line(c, height=n),
                    line(out, width=n),
                ),
            ),
            pooled(out, pool),
        ),
    )


def reduction_b(name: str, s: Scale, *, n: int = 7) -> Block:
    """17x17 -> 8x8."""
    c = s(192)
    return Block(
        name,
        (
            Branch("branch3x3", (square(c, 1), square(s(320), 3, stride=2))),
            Branch(
                f"branch{n}x{n}x3",
                (square(c, 1), line(c, width=n), line(c, height=n), square(c, 3, stride=2)),
            ),
            Branch("branch_pool", (Pool("max", stride=2),)),
        ),
    )


def block_c(name: str, s: Scale, *, pool: str = "avg") -> Block:
    """8x8 (paper, figure 7): the expanded outputs, 1x3 and 3x1 side by side."""
    c = s(384)
    fork = Fork((line(c, width=3), line(c, height=3)))
    return Block(
        name,
        (
            Branch("branch1x1", (square(s(320), 1),)),
            Branch("branch3x3", (square(c, 1), fork)),
            Branch("branch3x3dbl", (square(s(448), 1), square(c, 3, same=True), fork)),
            pooled(s(192), pool),
        ),
    )


def stem_v3(s: Scale) -> tuple["Stage", ...]:
    """299 -> 35x35x192 (paper, table 1)."""
    return (
        Stage("Conv2d_1a_3x3", square(s(32), 3, stride=2)),
        Stage("Conv2d_2a_3x3", square(s(32), 3)),
        Stage("Conv2d_2b_3x3", square(s(64), 3, same=True)),
        Stage("maxpool1", Pool("max", stride=2)),
        Stage("Conv2d_3b_1x1", square(s(80), 1)),
        Stage("Conv2d_4a_3x3", square(s(192), 3)),
        Stage("maxpool2", Pool("max", stride=2)),
    )


@dataclass(frozen=True, slots=True)
class Stage:
    """One named step of the trunk: a convolution, a pool or a block."""

    name: str
    body: Conv | Pool | Block


@dataclass(frozen=True, kw_only=True, slots=True)
class SidePlace:
    """Where a side head hangs, and what it is called. A GoogLeNet head pools to 4x4 and has a
    hidden layer; v3's pools 5x5 and covers the grid with a convolution (its `cover_has_norm`:
    the ladder's BN-auxiliary)."""

    name: str
    after: str
    is_googlenet: bool = False
    cover_has_norm: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """Stages, side heads and what else belongs to a network by its name."""

    stages: tuple[Stage, ...]
    sides: tuple[SidePlace, ...] = ()
    input_size: int = 299  # that it was published with
    activation: str = "relu"
    classifier: str = "fc"
