"""Inception blocks as data: parallel branches whose outputs are concatenated. No torch here.

A description is enough to count parameters and multiply-adds (cost.py) and to build the modules
(network.py). Channels are the published ones; `with_width` (rewrites.py) scales them.
"""

from dataclasses import dataclass, field
from enum import Enum

GOOGLENET_AUX_GRID = 4  # what its auxiliary heads pool to
Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution without bias, batch norm, activation. has_norm False: a bias instead of batch
    norm; is_linear: no activation."""

    channels: int
    kernel: Size
    stride: int = 1
    padding: Size = (0, 0)
    has_norm: bool = True
    is_linear: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """counts_padding: averages include the padding, as in torchvision and unlike TensorFlow.
    rounds_up: a last, partial window counts, as in GoogLeNet (TensorFlow's SAME)."""

    kind: str  # "max" or "avg"
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    counts_padding: bool = True
    rounds_up: bool = False


@dataclass(frozen=True, slots=True)
class ParallelConvs:
    """Convolutions over the same input, concatenated: an expanded filter bank (1512.00567, figure
    7)."""

    convs: tuple[Conv, ...]


Layer = Conv | Pool | ParallelConvs
Layers = tuple[Layer, ...]


class Naming(Enum):
    """How the state dict names the convolutions of a branch called `name`.

    Numbered: `name` for a single convolution, else `name_1`, `name_2`, or from `name_0`; pools have
    no number. Sequential: `name.0`, `name.1`, with pools counted. Parallel convolutions add a
    letter: `name_2a`, `name_2b`.
    """

    FROM_ONE = "numbered from 1"  # torchvision's inception_v3
    FROM_ZERO = "numbered from 0"
    SEQUENTIAL = "index in an nn.Sequential"


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain of layers. conv_names[i]: state-dict names of layer i's convolutions."""

    name: str
    layers: Layers
    naming: Naming = Naming.FROM_ONE
    conv_names: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conv_names", self._conv_names())

    def _conv_names(self) -> tuple[tuple[str, ...], ...]:
        counts_pools = self.naming is Naming.SEQUENTIAL
        separator = "." if counts_pools else "_"
        number = 1 if self.naming is Naming.FROM_ONE else 0
        counted = [layer for layer in self.layers if counts_pools or not isinstance(layer, Pool)]
        conv_names: list[tuple[str, ...]] = []
        for layer in self.layers:
            name = self.name if len(counted) == 1 else f"{self.name}{separator}{number}"
            if isinstance(layer, Conv):
                conv_names.append((name,))
            elif isinstance(layer, ParallelConvs):
                letters = "abcdefgh"[: len(layer.convs)]
                conv_names.append(tuple(f"{name}{letter}" for letter in letters))
            else:
                conv_names.append(())
            if counts_pools or not isinstance(layer, Pool):
                number += 1
        return tuple(conv_names)


@dataclass(frozen=True, slots=True)
class Block:
    """Parallel branches over one input."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One named step of a backbone: a convolution, a pool or a block."""

    name: str
    body: Conv | Pool | Block


Stages = tuple[Stage, ...]


def conv(channels: int, size: int, *, stride: int = 1, padding: int = 0) -> Conv:
    """A square convolution."""
    return Conv(channels, (size, size), stride, (padding, padding))


def conv_1xn(channels: int, n: int) -> Conv:
    """An asymmetric convolution that keeps the grid."""
    return Conv(channels, (1, n), 1, (0, n // 2))


def conv_nx1(channels: int, n: int) -> Conv:
    """An asymmetric convolution that keeps the grid."""
    return Conv(channels, (n, 1), 1, (n // 2, 0))


def branch(name: str, *layers: Layer, naming: Naming = Naming.FROM_ONE) -> Branch:
    return Branch(name, layers, naming)


def pool_branch(channels: int, kind: str) -> Branch:
    """A 3x3 pool and a 1x1 convolution."""
    return branch("branch_pool", Pool(kind, padding=1), conv(channels, 1))


def block(name: str, *branches: Branch) -> Stage:
    return Stage(name, Block(branches))


AUX_CONV0 = conv(128, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxHead:
    """An auxiliary classifier on the output of stage `after`; a job file calls it a side head.

    v3's (1512.00567, section 4): an average pool of `pool_size` with stride 3, the 1x1 `conv0`,
    `conv1`, which covers the grid that is left, the classifier. GoogLeNet's, without conv1
    (1409.4842, section 5): a pool to 4x4, `conv0`, a hidden layer of `hidden`, the classifier.
    """

    name: str
    after: str
    conv0: Conv = AUX_CONV0
    conv1: Conv | None = None
    pool_size: int = 5
    hidden: int = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A published network up to its classifier, which the state dict calls `classifier`."""

    stages: Stages
    aux_heads: tuple[AuxHead, ...] = ()
    input_size: int = 299  # as published
    activation: str = "relu"
    classifier: str = "fc"


def stem_v3() -> Stages:
    """299 -> 35x35x192 (1512.00567, table 1)."""
    return (
        Stage("Conv2d_1a_3x3", conv(32, 3, stride=2)),
        Stage("Conv2d_2a_3x3", conv(32, 3)),
        Stage("Conv2d_2b_3x3", conv(64, 3, padding=1)),
        Stage("maxpool1", Pool("max", stride=2)),
        Stage("Conv2d_3b_1x1", conv(80, 1)),
        Stage("Conv2d_4a_3x3", conv(192, 3)),
        Stage("maxpool2", Pool("max", stride=2)),
    )


def inception_a(name: str, *, pool_channels: int, pool: str = "avg", size: int = 5) -> Stage:
    """35x35 (1512.00567, figure 5): a 5x5 factorized into two 3x3, beside a plain 5x5 in the
    released graph. size: the kernel of that branch, 3 in the figure."""
    return block(
        name,
        branch("branch1x1", conv(64, 1)),
        branch(f"branch{size}x{size}", conv(48, 1), conv(64, size, padding=size // 2)),
        branch("branch3x3dbl", conv(64, 1), conv(96, 3, padding=1), conv(96, 3, padding=1)),
        pool_branch(pool_channels, pool),
    )


def reduction_a(name: str) -> Stage:
    """Grid reduction, 35x35 -> 17x17 (1512.00567, figure 10): stride-2 convolutions beside a
    stride-2 pool."""
    return block(
        name,
        branch("branch3x3", conv(384, 3, stride=2)),
        branch("branch3x3dbl", conv(64, 1), conv(96, 3, padding=1), conv(96, 3, stride=2)),
        branch("branch_pool", Pool("max", stride=2)),
    )


def inception_b(name: str, *, channels: int, n: int = 7, pool: str = "avg") -> Stage:
    """17x17 (1512.00567, figure 6): n x n as 1 x n and n x 1. The double branch starts with
    n x 1."""
    c = channels
    return block(
        name,
        branch("branch1x1", conv(192, 1)),
        branch(f"branch{n}x{n}", conv(c, 1), conv_1xn(c, n), conv_nx1(192, n)),
        branch(
            f"branch{n}x{n}dbl",
            conv(c, 1),
            conv_nx1(c, n),
            conv_1xn(c, n),
            conv_nx1(c, n),
            conv_1xn(192, n),
        ),
        pool_branch(192, pool),
    )


def reduction_b(name: str) -> Stage:
    """Grid reduction, 17x17 -> 8x8."""
    return block(
        name,
        branch("branch3x3", conv(192, 1), conv(320, 3, stride=2)),
        branch(
            "branch7x7x3",
            conv(192, 1),
            conv_1xn(192, 7),
            conv_nx1(192, 7),
            conv(192, 3, stride=2),
        ),
        branch("branch_pool", Pool("max", stride=2)),
    )


def inception_c(name: str, *, pool: str = "avg") -> Stage:
    """8x8 (1512.00567, figure 7): expanded filter banks, 1x3 beside 3x1."""
    expanded = ParallelConvs((conv_1xn(384, 3), conv_nx1(384, 3)))
    return block(
        name,
        branch("branch1x1", conv(320, 1)),
        branch("branch3x3", conv(384, 1), expanded),
        branch("branch3x3dbl", conv(448, 1), conv(384, 3, padding=1), expanded),
        pool_branch(192, pool),
    )
