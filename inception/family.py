"""A network as one description, by its name and options. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from inception.blocks import AuxHead, Backbone, Block, Layer, ParallelConvs, Pool, Stages
from inception.errors import ModelError, unknown_name
from inception.options import Options
from inception.rewrites import (
    factorize_7x7,
    has_asymmetric_pairs,
    has_reductions,
    merge_7x7,
    with_5x5,
    with_asymmetric,
    with_linear_inner,
    with_pools,
    with_reduction,
    with_stem,
    with_width,
    without_norm,
)
from inception.trunks_224 import bn_inception, googlenet
from inception.trunks_299 import inception_seed, inception_v2, inception_v3, inception_v4

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "googlenet": googlenet,
    "bn_inception": bn_inception,
    "inception_v2": inception_v2,
    "inception_seed": inception_seed,
    "inception_v3": inception_v3,
    "inception_v4": inception_v4,
}
MODEL_NAMES = tuple(BACKBONES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A whole network: the stages of its backbone, auxiliary heads, classifier."""

    name: str
    input_size: int
    num_classes: int
    stages: Stages
    aux_heads: tuple[AuxHead, ...]
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
    has_aux_heads: bool = True,
    dropout: float = 0.2,
    bn_momentum: float = 0.1,
    bn_eps: float = 1e-3,
    options: Options = Options(),  # noqa: B008 - immutable
) -> Architecture:
    """The description of a network; the keywords are a job's `model` fields.

    input_size: by default the published one. width scales every layer's channels to multiples of 4;
    1.0 is the published network. has_aux_heads False leaves them out. Raises ModelError: unknown
    name, an input smaller than the network's kernels and strides allow, fewer than two classes, a
    width that is not positive, an option for what the network does not have.
    """
    if name not in BACKBONES:
        raise unknown_name("model.name", name, MODEL_NAMES)
    if num_classes < 2:
        raise ModelError(f"model.num_classes: got {num_classes}; at least 2. Write 2 or more.")
    if width <= 0:
        raise ModelError(f"model.width: got {width}; more than 0. Write 1.0 for the paper's.")
    backbone = with_width(_with_options(name, BACKBONES[name](), options), width)
    size = backbone.input_size if input_size is None else input_size
    smallest = smallest_input(backbone.stages)
    if size < smallest:
        raise ModelError(
            f"model.input_size: got {size}; at least {smallest} px, or {name} shrinks its "
            f"grid to nothing. Write {smallest} or more (the paper's is {backbone.input_size})."
        )
    aux_heads = backbone.aux_heads if has_aux_heads else ()
    return Architecture(
        name=name,
        input_size=size,
        num_classes=num_classes,
        stages=backbone.stages,
        aux_heads=tuple(_fit_aux_head(head, backbone.stages, size) for head in aux_heads),
        activation=backbone.activation,
        classifier=backbone.classifier,
        init=options.init or "variance_scaling",
        dropout=dropout,
        bn_momentum=bn_momentum,
        bn_eps=bn_eps,
    )


def _with_options(name: str, backbone: Backbone, options: Options) -> Backbone:
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
    if options.asymmetric_n is not None and not has_asymmetric_pairs(stages):
        raise refusal("asymmetric_n", "has no pairs of 1 x n and n x 1")
    stages = with_asymmetric(stages, options.asymmetric_blocks, options.asymmetric_n)
    if options.inner_activation == "linear":
        stages = with_linear_inner(stages)
    if options.reduction is not None and not has_reductions(stages):
        raise refusal("reduction", "shrinks its grids by pools alone")
    if options.reduction in ("pool_then_conv", "conv_then_pool"):
        stages = with_reduction(stages, options.reduction)
    stages = with_pools(stages, options.pool, options.pool_counts_padding)
    heads = backbone.aux_heads
    if options.side_head_norm is not None:
        conv1s = [replace(h.conv1, has_norm=options.side_head_norm) for h in heads if h.conv1]
        if not conv1s:
            raise refusal("side_head_norm", "has no side head of v3's kind")
        heads = tuple(replace(h, conv1=c) for h, c in zip(heads, conv1s, strict=True))
    backbone = replace(
        backbone,
        stages=stages,
        aux_heads=heads,
        activation=options.activation or backbone.activation,
    )
    return without_norm(backbone) if options.batch_norm is False else backbone


def _fit_aux_head(head: AuxHead, stages: Stages, input_size: int) -> AuxHead:
    """Shrinks both kernels of a v3 head with its grid, as TensorFlow does; torchvision raises below
    299 px."""
    if head.conv1 is None:
        return head
    grid = input_size
    for stage in stages:
        grid = output_size(stage.body, grid)
        if stage.name == head.after:
            break
    pool_size = min(head.pool_size, grid)
    kernel = min(head.conv1.kernel[0], (grid - pool_size) // 3 + 1)
    return replace(head, pool_size=pool_size, conv1=replace(head.conv1, kernel=(kernel, kernel)))


def stage_names(architecture: Architecture) -> list[str]:
    """From the image on."""
    return [stage.name for stage in architecture.stages]


def smallest_input(stages: Stages) -> int:
    """The smallest square input, in pixels, that leaves at least one cell after every stage."""
    for size in range(1, 2048):
        grid = size
        for stage in stages:
            grid = output_size(stage.body, grid)
            if grid < 1:
                break
        else:
            return size
    raise AssertionError("no input up to 2047 px passes the stages")


def output_size(body: Layer | Block, grid: int) -> int:
    """Side of the square grid after a layer or block; 0 or less if nothing is left."""
    if isinstance(body, Block):
        sizes = []
        for branch in body.branches:
            size = grid
            for layer in branch.layers:
                size = output_size(layer, size)
            sizes.append(size)
        return min(sizes)
    if isinstance(body, ParallelConvs):
        return output_size(body.convs[0], grid)
    if isinstance(body, Pool):
        kernel, padding = body.kernel, body.padding
        if body.rounds_up and grid > 0:
            # As torch's ceil_mode: the last window starts inside the input or its left padding.
            cells = (grid + 2 * padding - kernel + body.stride - 1) // body.stride + 1
            return cells - ((cells - 1) * body.stride >= grid + padding)
    else:
        # Asymmetric convolutions keep the grid, so that the height decides for both sides.
        kernel, padding = body.kernel[0], body.padding[0]
    if grid + 2 * padding < kernel:
        return 0
    return (grid + 2 * padding - kernel) // body.stride + 1
