"""A network as data: stages, most of them blocks of parallel branches. No torch here.

A description is enough to count parameters and multiply-adds (cost.py) and to build the modules
(network.py). Channels are the published ones; `with_width` (rewrites.py) scales them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, partial

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


class Naming(Enum):
    """How the layers of a branch called `name` are named: (separator, first number).

    Numbered: `name` for a single convolution, else `name_1`, `name_2`, or from `name_0`; pools have
    no number. Sequential: `name.0`, `name.1`, with pools counted.
    """

    FROM_ONE = ("_", 1)  # torchvision's inception_v3
    FROM_ZERO = ("_", 0)
    SEQUENTIAL = (".", 0)


@dataclass(frozen=True)
class Branch:
    """A chain of layers. The name of a branch in a nested block is appended to the block's: the
    branches a and b of `name_2` are `name_2a` and `name_2b`."""

    name: str
    layers: "Layers"
    naming: Naming = Naming.FROM_ONE

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Each layer's name in the state dict."""
        separator, number = self.naming.value
        is_numbered = [separator == "." or not isinstance(layer, Pool) for layer in self.layers]
        names = []
        for has_number in is_numbered:
            if not has_number:
                names.append(f"{self.name}_pool")
            elif sum(is_numbered) == 1:
                names.append(self.name)
            else:
                names.append(f"{self.name}{separator}{number}")
                number += 1
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Block:
    """Parallel branches over one input, concatenated. Within a branch: an expanded filter bank
    (1512.00567, figure 7)."""

    branches: tuple[Branch, ...]


Layer = Conv | Pool | Block
Layers = tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One named step of a backbone."""

    name: str
    body: Layer


Stages = tuple[Stage, ...]


def conv(channels: int, size: int, *, stride: int = 1, padding: int = 0) -> Conv:
    """A square convolution."""
    return Conv(channels, (size, size), stride, (padding, padding))


def branch(name: str, *layers: Layer, naming: Naming = Naming.FROM_ONE) -> Branch:
    return Branch(name, layers, naming)


sequential = partial(branch, naming=Naming.SEQUENTIAL)


def pool_branch(channels: int, kind: str) -> Branch:
    """A 3x3 pool and a 1x1 convolution."""
    return branch("branch_pool", Pool(kind, padding=1), conv(channels, 1))


def block(name: str, *branches: Branch) -> Stage:
    return Stage(name, Block(branches))


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxHead:
    """An auxiliary classifier on the output of stage `after`; a job file calls it a side head.

    v3's (1512.00567, section 4): an average pool of `pool_size` with stride 3, the 1x1 `conv0`,
    `conv1`, which covers the grid that is left, the classifier. GoogLeNet's, without conv1
    (1409.4842, section 5): a pool to 4x4, `conv0`, a hidden layer of `hidden`, the classifier.
    """

    name: str
    after: str
    conv0: Conv = conv(128, 1)  # noqa: RUF009 - immutable
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


def map_chains(stages: Stages, rewrite: Callable[[Layers], Layers]) -> Stages:
    """Rewrites the layers of each branch, inner ones first, and each stage as a chain of one."""

    def rewrite_branches(layer: Layer) -> Layer:
        if not isinstance(layer, Block):
            return layer
        return Block(tuple(replace(b, layers=rewrite_chain(b.layers)) for b in layer.branches))

    def rewrite_chain(layers: Layers) -> Layers:
        return rewrite(tuple(map(rewrite_branches, layers)))

    rewritten = []
    for stage in stages:
        (body,) = rewrite_chain((stage.body,))
        rewritten.append(replace(stage, body=body))
    return tuple(rewritten)


def map_layers(stages: Stages, rewrite: Callable[[Layer], Layers]) -> Stages:
    return map_chains(
        stages, lambda layers: tuple(new for layer in layers for new in rewrite(layer))
    )


def map_pairs(stages: Stages, rewrite: Callable[[Conv, Conv], Layers]) -> Stages:
    """Rewrites the factorized pairs of each branch, found from its start without overlap."""

    def rewrite_chain(layers: Layers) -> Layers:
        rewritten: list[Layer] = []
        while layers:
            match layers:
                case (Conv() as a, Conv() as b, *_) if _is_pair(a, b):
                    rewritten += rewrite(a, b)
                    layers = layers[2:]
                case _:
                    rewritten.append(layers[0])
                    layers = layers[1:]
        return tuple(rewritten)

    return map_chains(stages, rewrite_chain)


def map_convs(backbone: Backbone, rewrite: Callable[[Conv], Conv]) -> Backbone:
    """Rewrites the convolutions of stages and auxiliary heads."""

    def rewrite_layer(layer: Layer) -> Layers:
        return (rewrite(layer) if isinstance(layer, Conv) else layer,)

    heads = tuple(
        replace(head, conv0=rewrite(head.conv0), conv1=head.conv1 and rewrite(head.conv1))
        for head in backbone.aux_heads
    )
    return replace(backbone, stages=map_layers(backbone.stages, rewrite_layer), aux_heads=heads)


def _is_pair(a: Conv, b: Conv) -> bool:
    """Two 3x3, or 1 x n and n x 1 in either order: one larger convolution, factorized."""
    if a.stride > 1:
        return False
    is_asymmetric = a.kernel == b.kernel[::-1] and 1 in a.kernel and a.kernel != (1, 1)
    return is_asymmetric or (a.kernel == b.kernel == (3, 3))
