"""Options as transformations of a description: stages in, stages out. No torch here.

A transformed branch keeps its name, so a name says where a layer is, not which kernel it has.
"""

from dataclasses import replace

from inception.blocks import (
    Backbone,
    Block,
    Conv,
    Layer,
    Layers,
    Pool,
    Size,
    Stage,
    Stages,
    conv,
    map_chains,
    map_convs,
    map_layers,
    map_pairs,
)
from inception.errors import ModelError
from inception.options import GRID_LETTERS, Options

STEM_3X3 = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
STEM_7X7 = "Conv2d_1a_7x7"


def with_options(name: str, backbone: Backbone, options: Options) -> Backbone:
    """Applies the options in the order in which they build on each other."""

    def refusal(option: str, rule: str) -> ModelError:
        value = getattr(options, option)
        return ModelError(f"model.options.{option}: got {value}; {name} {rule}. Leave it out.")

    stages = backbone.stages
    if options.factorized_7x7 is not None:
        stages = factorize_7x7(stages) if options.factorized_7x7 else merge_7x7(stages)
    if options.stem is not None:
        with_new_stem = with_stem(stages, options.stem)
        if with_new_stem is None:
            raise refusal("stem", "has no pool before its first block")
        stages = with_new_stem
    if options.conv_5x5 is not None:
        stages = with_5x5(stages, options.conv_5x5)
    if options.asymmetric_n is not None:
        kernels = [layer.kernel for layer in _layers(stages) if isinstance(layer, Conv)]
        if all(height == width for height, width in kernels):
            raise refusal("asymmetric_n", "has no pairs of 1 x n and n x 1")
        stages = with_asymmetric_n(stages, options.asymmetric_n)
    if options.asymmetric_blocks is not None:
        stages = with_asymmetric(stages, options.asymmetric_blocks)
    if options.inner_activation == "linear":
        stages = map_pairs(stages, lambda a, b: (replace(a, is_linear=True), b))  # figure 2
    if options.reduction is not None and not _has_reduction(stages):
        raise refusal("reduction", "shrinks its grids by pools alone")
    if options.reduction in ("pool_then_conv", "conv_then_pool"):
        stages = with_reduction(stages, options.reduction)
    stages = with_pools(stages, options.pool, options.pool_counts_padding)
    heads = backbone.aux_heads
    if options.side_head_norm is not None:
        if not any(head.conv1 for head in heads):
            raise refusal("side_head_norm", "has no side head of v3's kind")
        norm = options.side_head_norm
        heads = tuple(replace(h, conv1=h.conv1 and replace(h.conv1, has_norm=norm)) for h in heads)
    activation = options.activation or backbone.activation
    backbone = replace(backbone, stages=stages, aux_heads=heads, activation=activation)
    if options.batch_norm is False:
        backbone = map_convs(backbone, lambda layer: replace(layer, has_norm=False))
    return backbone


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
    return (*map(Stage, names, convs), *rest)


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
        small = _with_kernel(layer, (3, 3))
        return (small,) if kind == "3x3" else (replace(small, stride=1), small)

    if kind == "5x5":
        return map_pairs(stages, lambda a, b: (_merged(a, b),) if _is_square(a) else (a, b))
    return map_layers(stages, replaced)


def with_asymmetric_n(stages: Stages, n: int) -> Stages:
    """Another length n for 1 x n and n x 1."""

    def with_length(layer: Conv) -> Conv:
        return _with_kernel(layer, (1, n) if layer.kernel[0] == 1 else (n, 1))

    return map_pairs(
        stages, lambda a, b: (a, b) if _is_square(a) else (with_length(a), with_length(b))
    )


def with_asymmetric(stages: Stages, grids: str) -> Stages:
    """k x k convolutions as 1 x k and k x 1 in the blocks of these grids, and asymmetric pairs as
    squares in the others."""
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
            return map_layers((stage,), factorized)
        return map_pairs((stage,), lambda a, b: (a, b) if _is_square(a) else (_merged(a, b),))

    return tuple(new for stage in stages for new in rewrite(stage))


def with_reduction(stages: Stages, kind: str) -> Stages:
    """Grid reductions as a pool followed by convolutions, or the reverse (figure 9)."""

    def without_stride(layer: Layer) -> Layer:
        if not isinstance(layer, Conv) or layer.stride == 1:
            return layer
        return replace(_with_kernel(layer, layer.kernel), stride=1)

    def rewrite(stage: Stage) -> Stages:
        pools = [p for p in _layers((stage,)) if isinstance(p, Pool) and p.stride > 1]

        def with_pool(layers: Layers) -> Layers:
            same_grid = tuple(map(without_stride, layers))
            if same_grid == layers:
                return layers
            return (pools[0], *same_grid) if kind == "pool_then_conv" else (*same_grid, pools[0])

        return map_chains((stage,), with_pool) if pools else (stage,)

    return tuple(new for stage in stages for new in rewrite(stage))


def with_pools(stages: Stages, kind: str | None, counts_padding: bool | None) -> Stages:
    """The kind of the pools in pool branches, and whether their averages include the padding."""

    def rewrite(layer: Layer) -> Layers:
        if not isinstance(layer, Pool) or layer.stride > 1:
            return (layer,)
        counts = layer.counts_padding if counts_padding is None else counts_padding
        return (replace(layer, kind=kind or layer.kind, counts_padding=counts),)

    return map_layers(stages, rewrite)


def with_width(backbone: Backbone, width: float) -> Backbone:
    """Every layer's channels times `width`, rounded to multiples of 4; 1.0 changes nothing."""
    if width == 1.0:
        return backbone

    def scaled(channels: int) -> int:
        return max(4, 4 * round(channels * width / 4))

    backbone = map_convs(backbone, lambda layer: replace(layer, channels=scaled(layer.channels)))
    heads = tuple(replace(head, hidden=scaled(head.hidden)) for head in backbone.aux_heads)
    return replace(backbone, aux_heads=heads)


def _grid_letters(stages: Stages) -> dict[str, str]:
    """The grid of each block by stage name: the last is c. A reduction belongs to the grid that it
    reduces."""
    grids: list[list[str]] = [[]]
    for stage in stages:
        if isinstance(stage.body, Block):
            grids[-1].append(stage.name)
        if not isinstance(stage.body, Block) or _has_reduction((stage,)):
            grids.append([])
    last = [names for names in grids if names][-len(GRID_LETTERS) :]
    lettered = zip(GRID_LETTERS[-len(last) :], last, strict=True)
    return {name: letter for letter, names in lettered for name in names}


def _layers(stages: Stages) -> list[Layer]:
    """Those of all blocks' branches."""
    blocks = [stage.body for stage in stages if isinstance(stage.body, Block)]
    return [layer for block in blocks for branch in block.branches for layer in branch.layers]


def _has_reduction(stages: Stages) -> bool:
    """Whether any block reduces its grid."""
    return any(isinstance(layer, Conv | Pool) and layer.stride > 1 for layer in _layers(stages))


def _is_square(layer: Conv) -> bool:
    return layer.kernel[0] == layer.kernel[1] > 1


def _merged(a: Conv, b: Conv) -> Conv:
    """One convolution with the pair's receptive field."""
    return replace(
        b,
        kernel=(a.kernel[0] + b.kernel[0] - 1, a.kernel[1] + b.kernel[1] - 1),
        padding=(a.padding[0] + b.padding[0], a.padding[1] + b.padding[1]),
    )


def _with_kernel(layer: Conv, kernel: Size) -> Conv:
    """Padded so that the grid stays."""
    return replace(layer, kernel=kernel, padding=(kernel[0] // 2, kernel[1] // 2))
