"""A network by its name and options, as one description. No torch here. The trunks: trunks_224.py
and trunks_299.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from inception.blocks import (
    Block,
    Branch,
    Conv,
    Fork,
    Layer,
    Pool,
    Scale,
    SidePlace,
    Stage,
    Trunk,
)
from inception.errors import ModelError, unknown_name
from inception.options import Options
from inception.rewrites import (
    has_lines,
    has_reductions,
    join_7x7,
    split_7x7,
    with_5x5,
    with_asymmetric,
    with_linear_inside,
    with_pools,
    with_reduction,
    with_stem,
    without_norm,
)
from inception.trunks_224 import bn_inception, googlenet
from inception.trunks_299 import inception_seed, inception_v2, inception_v3, inception_v4

TRUNKS: dict[str, Callable[[Scale], Trunk]] = {
    "googlenet": googlenet,
    "bn_inception": bn_inception,
    "inception_v2": inception_v2,
    "inception_seed": inception_seed,
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
}
MODEL_NAMES = tuple(TRUNKS)
GOOGLENET_GRID = 4  # that its side heads pool to


@dataclass(frozen=True, kw_only=True, slots=True)
class SideHead:
    """An auxiliary classifier on the grid after stage `after` (1512.00567, section 4).

    v3's: pool `pool_kernel` stride 3, 1x1, a convolution that covers the grid left over, the
    classifier; both kernels shrink with the grid, as TensorFlow's do (torchvision's raise below
    299 px). GoogLeNet's (1409.4842, section 5): pool to 4x4, 1x1, a hidden layer of `hidden`, the
    classifier.
    """

    name: str
    after: str
    reduce: Conv
    pool_kernel: int = 0
    cover: Conv | None = None
    hidden: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A whole network: trunk, side heads, classifier."""

    name: str
    input_size: int
    num_classes: int
    stages: tuple[Stage, ...]
    side_heads: tuple[SideHead, ...]
    activation: str
    classifier: str
    init: str
    dropout: float
    bn_momentum: float
    bn_eps: float


def build_architecture(
    name: str,
    *,
    num_classes: int,
    input_size: int | None = None,
    width: float = 1.0,
    side_head: bool = True,
    dropout: float = 0.2,
    bn_momentum: float = 0.1,
    bn_eps: float = 1e-3,
    options: Options = Options(),  # noqa: B008 - immutable
) -> Architecture:
    """The description of a network by its name and options.

    input_size: left out, the one it was published with. width scales every layer's channels to
    multiples of 4; 1.0 is the published network. side_head: with the side heads that it has, if
    any. Raises ModelError: unknown name, an input under the network's minimum (computed from its
    own kernels and strides), fewer than two classes, a width that is not positive, an option for
    what the network has not.
    """
    if name not in TRUNKS:
        raise unknown_name("model.name", name, MODEL_NAMES)
    if num_classes < 2:
        raise ModelError(f"model.num_classes: got {num_classes}; at least 2. Write 2 or more.")
    if width <= 0:
        raise ModelError(f"model.width: got {width}; more than 0. Write 1.0 for the paper's.")

    def scale(channels: int) -> int:
        return channels if width == 1.0 else max(4, 4 * round(channels * width / 4))

    trunk = _with_options(name, TRUNKS[name](scale), options, scale)
    size = trunk.input_size if input_size is None else input_size
    smallest = smallest_input(trunk.stages)
    if size < smallest:
        raise ModelError(
            f"model.input_size: got {size}; at least {smallest} px, or {name} shrinks its "
            f"grid to nothing. Write {smallest} or more (the paper's is {trunk.input_size})."
        )
    return Architecture(
        name=name,
        input_size=size,
        num_classes=num_classes,
        stages=trunk.stages,
        side_heads=(
            tuple(_side_head(place, trunk, size, scale, options) for place in trunk.sides)
            if side_head
            else ()
        ),
        activation=trunk.activation,
        classifier=trunk.classifier,
        init=options.init or "variance_scaling",
        dropout=dropout,
        bn_momentum=bn_momentum,
        bn_eps=bn_eps,
    )


def _with_options(name: str, trunk: Trunk, options: Options, scale: Scale) -> Trunk:
    """The trunk with its options worked into it; the order is that in which they build on each
    other."""

    def refuse(option: str, rule: str) -> ModelError:
        value = getattr(options, option)
        return ModelError(f"model.options.{option}: got {value}; {name} {rule}. Leave it out.")

    stages: tuple[Stage, ...] | None = trunk.stages
    assert stages is not None
    if options.factorized_7x7 is not None:
        stages = split_7x7(stages, scale) if options.factorized_7x7 else join_7x7(stages)
    if options.stem is not None:
        stages = with_stem(stages, options.stem)
        if stages is None:
            raise refuse("stem", "has no pool before its first block")
    if options.conv_5x5 is not None:
        stages = with_5x5(stages, options.conv_5x5)
    if options.asymmetric_n is not None and not has_lines(stages):
        raise refuse("asymmetric_n", "has no pairs of 1 x n and n x 1")
    stages = with_asymmetric(stages, options.asymmetric_blocks, options.asymmetric_n)
    if options.inner_activation == "linear":
        stages = with_linear_inside(stages)
    if options.reduction is not None and not has_reductions(stages):
        raise refuse("reduction", "shrinks its grids by pools alone")
    if options.reduction in ("pool_then_conv", "conv_then_pool"):
        stages = with_reduction(stages, options.reduction)
    stages = with_pools(stages, options.pool, options.pool_counts_padding)
    if options.batch_norm is False:
        stages = without_norm(stages)
    sides = trunk.sides
    if options.side_head_norm is not None:
        if not sides or any(side.is_googlenet for side in sides):
            raise refuse("side_head_norm", "has no side head of v3's kind")
        sides = tuple(replace(s, cover_has_norm=options.side_head_norm) for s in sides)
    return replace(
        trunk, stages=stages, sides=sides, activation=options.activation or trunk.activation
    )


def _side_head(
    place: SidePlace, trunk: Trunk, size: int, scale: Scale, options: Options
) -> SideHead:
    has_norm = options.batch_norm is not False
    reduce = Conv(scale(128), (1, 1), has_norm=has_norm)
    if place.is_googlenet:
        return SideHead(name=place.name, after=place.after, reduce=reduce, hidden=scale(1024))
    grid = size
    for stage in trunk.stages:
        grid = body_output(stage.body, grid)
        if stage.name == place.after:
            break
    pool_kernel = min(5, grid)
    cover = min(5, (grid - pool_kernel) // 3 + 1)
    return SideHead(
        name=place.name,
        after=place.after,
        reduce=reduce,
        pool_kernel=pool_kernel,
        cover=Conv(scale(768), (cover, cover), has_norm=has_norm and place.cover_has_norm),
    )


def stage_names(architecture: Architecture) -> list[str]:
    """Names of the trunk's stages, from the image on."""
    return [stage.name for stage in architecture.stages]


def smallest_input(stages: tuple[Stage, ...]) -> int:
    """The smallest square input, in pixels, of which every stage leaves at least one cell."""
    for size in range(1, 2048):
        grid = size
        for stage in stages:
            grid = body_output(stage.body, grid)
            if grid < 1:
                break
        else:
            return size
    raise AssertionError("no input up to 2047 px passes the stages")


def body_output(body: Conv | Pool | Block, grid: int) -> int:
    """Side of the square grid after a stage; 0 or less where nothing is left."""
    if isinstance(body, Block):
        return min(_branch_output(branch, grid) for branch in body.branches)
    return layer_output(body, grid)


def layer_output(layer: Layer, grid: int) -> int:
    """Side of the square grid after one layer."""
    if isinstance(layer, Fork):
        return layer_output(layer.outputs[0], grid)
    if isinstance(layer, Pool):
        kernel, padding = layer.kernel, layer.padding
        if layer.rounds_up and grid > 0:
            # torch's ceil_mode: the last window begins within the input or its left padding.
            cells = (grid + 2 * padding - kernel + layer.stride - 1) // layer.stride + 1
            return cells - ((cells - 1) * layer.stride >= grid + padding)
    else:
        # Both halves of a factorized pair keep the grid; the square ones have equal sides.
        kernel, padding = layer.kernel[0], layer.padding[0]
    if grid + 2 * padding < kernel:
        return 0
    return (grid + 2 * padding - kernel) // layer.stride + 1


def _branch_output(branch: Branch, grid: int) -> int:
    for layer in branch.layers:
        grid = layer_output(layer, grid)
    return grid
