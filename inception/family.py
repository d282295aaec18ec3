"""A network as one description, by its name and options. No torch here."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from inception.blocks import AuxHead, Backbone, Block, Layer, Pool, Stages
from inception.errors import ModelError, unknown_name
from inception.options import Options
from inception.rewrites import with_options, with_width
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
class Architecture(Backbone):
    """A whole network, with its classifier."""

    name: str
    num_classes: int
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
    backbone = with_width(with_options(name, BACKBONES[name](), options), width)
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


def _fit_aux_head(head: AuxHead, stages: Stages, input_size: int) -> AuxHead:
    """Shrinks both kernels of a v3 head with its grid, as TensorFlow does; torchvision raises below
    299 px."""
    if head.conv1 is None:
        return head
    last = [stage.name for stage in stages].index(head.after)
    grid = output_size((stage.body for stage in stages[: last + 1]), input_size)
    pool_size = min(head.pool_size, grid)
    kernel = min(head.conv1.kernel[0], (grid - pool_size) // 3 + 1)
    return replace(head, pool_size=pool_size, conv1=replace(head.conv1, kernel=(kernel, kernel)))


def stage_names(architecture: Architecture) -> list[str]:
    """From the image on."""
    return [stage.name for stage in architecture.stages]


def smallest_input(stages: Stages) -> int:
    """The smallest square input, in pixels, that leaves at least one cell after every stage."""
    bodies = [stage.body for stage in stages]
    return bisect_left(range(2048), 1, key=lambda size: output_size(bodies, size))


def output_size(layers: Iterable[Layer], grid: int) -> int:
    """Side of the square grid after a chain of layers; 0 if nothing is left."""
    for layer in layers:
        grid = _output_size(layer, grid)
    return grid


def _output_size(layer: Layer, grid: int) -> int:
    if isinstance(layer, Block):
        return min(output_size(branch.layers, grid) for branch in layer.branches)
    if isinstance(layer, Pool):
        kernel, padding = layer.kernel, layer.padding
        if layer.rounds_up and grid > 0:
            # As torch's ceil_mode: the last window starts inside the input or its left padding.
            cells = (grid + 2 * padding - kernel + layer.stride - 1) // layer.stride + 1
            return cells - ((cells - 1) * layer.stride >= grid + padding)
    else:
        # Asymmetric convolutions keep the grid, so that the height decides for both sides.
        kernel, padding = layer.kernel[0], layer.padding[0]
    if grid + 2 * padding < kernel:
        return 0
    return (grid + 2 * padding - kernel) // layer.stride + 1
