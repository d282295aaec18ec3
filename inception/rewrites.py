"""Options as transformations of a description: stages in, stages out. No torch here.

A transformed branch keeps its name, so a name says where a layer is, not which kernel it has.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from inception.blocks import (
    Backbone,
    Block,
    Conv,
    Layer,
    Layers,
    ParallelConvs,
    Pool,
    Stage,
    Stages,
    conv,
)
from inception.options import GRID_LETTERS

STEM_3X3 = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
STEM_7X7 = "Conv2d_1a_7x7"


def with_stem(stages: Stages, input_size: int) -> Stages | None:
    """The stem for inputs of 299, 151 or 79 px (table 2); None if the pool to remove for 79 px does
    not exist."""
    first, *rest = stages
    assert isinstance(first.body, Conv)
    if input_size == 299:
        return stages
    stages = (replace(first, body=replace(first.body, stride=1)), *rest)
    if input_size == 151:
        return stages
    i = next(i for i, stage in enumerate(stages) if not isinstance(stage.body, Conv))
    return stages[:i] + stages[i + 1 :] if isinstance(stages[i].body, Pool) else None


def factorize_7x7(stages: Stages) -> Stages:
    """A first 7x7 as three 3x3, two of 32 channels and one of all (table 1)."""
    first, *rest = stages
    large = first.body
    if not isinstance(large, Conv) or large.kernel != (7, 7):
        return stages
    names = STEM_3X3 if first.name == STEM_7X7 else tuple(f"{first.name}_{i}" for i in (1, 2, 3))
    padding = 1 if large.padding != (0, 0) else 0
    convs = (
        conv(32, 3, stride=large.stride, padding=padding),
        conv(32, 3, padding=padding),
        conv(large.channels, 3, padding=1),
    )
    return (*(Stage(name, c) for name, c in zip(names, convs, strict=True)), *rest)


def merge_7x7(stages: Stages) -> Stages:
    """The first three 3x3 as one 7x7, if the network starts with them."""
    convs = [stage.body for stage in stages[:3] if isinstance(stage.body, Conv)]
    if [c.kernel for c in convs] != [(3, 3)] * 3:
        return stages
    name = STEM_7X7 if stages[0].name == STEM_3X3[0] else stages[0].name
    return (Stage(name, conv(convs[2].channels, 7, stride=convs[0].stride)), *stages[3:])


def with_5x5(stages: Stages, kind: str) -> Stages:
    """5x5: pairs of 3x3 become one 5x5; two_3x3: the reverse; 3x3: one 3x3 replaces a 5x5."""

    def replaced(layer: Layer) -> Layers:
        if not isinstance(layer, Conv) or layer.kernel != (5, 5):
            return (layer,)
        small = replace(layer, kernel=(3, 3), padding=(1, 1))
        return (small,) if kind == "3x3" else (replace(small, stride=1), small)

    if kind == "5x5":
        return _map_pairs(stages, lambda a, b: (_merged(a, b),) if _is_square(a) else (a, b))
    return _map_layers(stages, replaced)


def with_asymmetric(stages: Stages, grids: str | None, n: int | None) -> Stages:
    """k x k convolutions as 1 x k and k x 1 in the blocks of these grids, and asymmetric pairs as
    squares in the others; grids None: unchanged. n: the new length of existing asymmetric pairs."""
    if n is not None:
        stages = _map_pairs(
            stages,
            lambda a, b: (a, b) if _is_square(a) else (_with_length(a, n), _with_length(b, n)),
        )
    if grids is None:
        return stages
    letters = _grid_letters(stages)

    def factorized(layer: Layer) -> Layers:
        if not isinstance(layer, Conv) or not _is_square(layer) or layer.stride > 1:
            return (layer,)
        k, padding = layer.kernel[0], layer.padding[0]
        return (
            replace(layer, kernel=(1, k), padding=(0, padding)),
            replace(layer, kernel=(k, 1), padding=(padding, 0)),
        )

    def rewrite(stage: Stage) -> Stages:
        if letters.get(stage.name, "-") in grids:
            return _map_layers((stage,), factorized)
        return _map_pairs((stage,), lambda a, b: (a, b) if _is_square(a) else (_merged(a, b),))

    return tuple(new for stage in stages for new in rewrite(stage))


def with_linear_inner(stages: Stages) -> Stages:
    """No activation after the first convolution of each factorized pair (figure 2)."""
    return _map_pairs(stages, lambda a, b: (replace(a, is_linear=True), b))


def with_reduction(stages: Stages, kind: str) -> Stages:
    """Grid reductions as a pool followed by convolutions, or the reverse (figure 9)."""

    def without_stride(layer: Layer) -> Layer:
        if not isinstance(layer, Conv) or layer.stride == 1:
            return layer
        height, width = layer.kernel
        return replace(layer, stride=1, padding=(height // 2, width // 2))

    def rewrite(block: Block) -> Block:
        pools = [
            layer
            for branch in block.branches
            for layer in branch.layers
            if isinstance(layer, Pool) and layer.stride > 1
        ]
        if not pools:
            return block
        branches = []
        for branch in block.branches:
            layers = tuple(without_stride(layer) for layer in branch.layers)
            if layers != branch.layers:
                layers = (pools[0], *layers) if kind == "pool_then_conv" else (*layers, pools[0])
            branches.append(replace(branch, layers=layers))
        return Block(tuple(branches))

    return _map_blocks(stages, rewrite)


def has_reductions(stages: Stages) -> bool:
    """Whether any block reduces its grid."""
    return any(isinstance(stage.body, Block) and _is_reduction(stage.body) for stage in stages)


def has_asymmetric_pairs(stages: Stages) -> bool:
    return any(
        isinstance(a, Conv) and isinstance(b, Conv) and _is_pair(a, b) and not _is_square(a)
        for stage in stages
        if isinstance(stage.body, Block)
        for branch in stage.body.branches
        for a, b in pairwise(branch.layers)
    )


def with_pools(stages: Stages, kind: str | None, counts_padding: bool | None) -> Stages:
    """The kind of the pools in pool branches, and whether their averages include the padding."""

    def rewrite(layer: Layer) -> Layers:
        if not isinstance(layer, Pool) or layer.stride > 1:
            return (layer,)
        counts = layer.counts_padding if counts_padding is None else counts_padding
        return (replace(layer, kind=kind or layer.kind, counts_padding=counts),)

    return _map_layers(stages, rewrite)


def without_norm(backbone: Backbone) -> Backbone:
    """Every convolution with a bias instead of batch norm."""
    return _map_convs(backbone, lambda layer: replace(layer, has_norm=False))


def with_width(backbone: Backbone, width: float) -> Backbone:
    """Every layer's channels times `width`, rounded to multiples of 4; 1.0 changes nothing."""
    if width == 1.0:
        return backbone

    def scaled(channels: int) -> int:
        return max(4, 4 * round(channels * width / 4))

    backbone = _map_convs(backbone, lambda layer: replace(layer, channels=scaled(layer.channels)))
    heads = tuple(replace(head, hidden=scaled(head.hidden)) for head in backbone.aux_heads)
    return replace(backbone, aux_heads=heads)


def _grid_letters(stages: Stages) -> dict[str, str]:
    """The grid of each block by stage name: the last is c. A reduction belongs to the grid that it
    reduces."""
    grids: list[list[str]] = [[]]
    for stage in stages:
        if isinstance(stage.body, Block):
            grids[-1].append(stage.name)
        if not isinstance(stage.body, Block) or _is_reduction(stage.body):
            grids.append([])
    last = [names for names in grids if names][-len(GRID_LETTERS) :]
    lettered = zip(GRID_LETTERS[-len(last) :], last, strict=True)
    return {name: letter for letter, names in lettered for name in names}


def _is_reduction(block: Block) -> bool:
    return any(
        isinstance(layer, Conv | Pool) and layer.stride > 1
        for branch in block.branches
        for layer in branch.layers
    )


def _map_blocks(stages: Stages, rewrite: Callable[[Block], Block]) -> Stages:
    return tuple(
        replace(stage, body=rewrite(stage.body)) if isinstance(stage.body, Block) else stage
        for stage in stages
    )


def _map_branches(stages: Stages, rewrite: Callable[[Layers], Layers]) -> Stages:
    return _map_blocks(
        stages,
        lambda block: Block(tuple(replace(b, layers=rewrite(b.layers)) for b in block.branches)),
    )


def _map_layers(stages: Stages, rewrite: Callable[[Layer], Layers]) -> Stages:
    return _map_branches(
        stages, lambda layers: tuple(new for layer in layers for new in rewrite(layer))
    )


def _map_pairs(stages: Stages, rewrite: Callable[[Conv, Conv], Layers]) -> Stages:
    """Rewrites the factorized pairs of each branch, found from its start without overlap."""

    def rewrite_branch(layers: Layers) -> Layers:
        rewritten: list[Layer] = []
        i = 0
        while i < len(layers):
            a, b = layers[i], layers[i + 1] if i + 1 < len(layers) else None
            if isinstance(a, Conv) and isinstance(b, Conv) and _is_pair(a, b):
                rewritten += rewrite(a, b)
                i += 2
            else:
                rewritten.append(a)
                i += 1
        return tuple(rewritten)

    return _map_branches(stages, rewrite_branch)


def _map_convs(backbone: Backbone, rewrite: Callable[[Conv], Conv]) -> Backbone:
    """Rewrites the convolutions of stages and auxiliary heads."""

    def rewrite_layer(layer: Layer) -> Layers:
        if isinstance(layer, ParallelConvs):
            return (ParallelConvs(tuple(map(rewrite, layer.convs))),)
        return (rewrite(layer),) if isinstance(layer, Conv) else (layer,)

    stages = tuple(
        replace(stage, body=rewrite(stage.body)) if isinstance(stage.body, Conv) else stage
        for stage in _map_layers(backbone.stages, rewrite_layer)
    )
    heads = tuple(
        replace(
            head,
            conv0=rewrite(head.conv0),
            conv1=None if head.conv1 is None else rewrite(head.conv1),
        )
        for head in backbone.aux_heads
    )
    return replace(backbone, stages=stages, aux_heads=heads)


def _is_pair(a: Conv, b: Conv) -> bool:
    """Two 3x3, or 1 x n and n x 1 in either order: one larger convolution, factorized."""
    if a.stride > 1:
        return False
    is_asymmetric = a.kernel == b.kernel[::-1] and 1 in a.kernel and a.kernel != (1, 1)
    return is_asymmetric or (a.kernel == b.kernel == (3, 3))


def _is_square(layer: Conv) -> bool:
    return layer.kernel[0] == layer.kernel[1] > 1


def _merged(a: Conv, b: Conv) -> Conv:
    """One convolution with the pair's receptive field."""
    return replace(
        b,
        kernel=(a.kernel[0] + b.kernel[0] - 1, a.kernel[1] + b.kernel[1] - 1),
        padding=(a.padding[0] + b.padding[0], a.padding[1] + b.padding[1]),
    )


def _with_length(layer: Conv, n: int) -> Conv:
    """An asymmetric convolution as 1 x n or n x 1."""
    height, width = (1, n) if layer.kernel[0] == 1 else (n, 1)
    return replace(layer, kernel=(height, width), padding=(height // 2, width // 2))
