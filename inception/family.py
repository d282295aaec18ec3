"""The networks of the family, as descriptions. No torch here.

Source: "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567) as released
in TensorFlow; the paper's printed table 1 differs from its own graph, and the graph is followed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from inception.blocks import (
    Block,
    Branch,
    Conv,
    Fork,
    Layer,
    Pool,
    Stage,
    block_a,
    block_b,
    block_c,
    reduction_a,
    reduction_b,
    stem_v3,
)
from inception.errors import ModelError, unknown_name


@dataclass(frozen=True, kw_only=True, slots=True)
class SideHead:
    """The auxiliary classifier on the grid after stage `after` (paper, section 4).

    Pool 5x5 stride 3, 1x1, then a convolution that covers the grid left over, then the classifier.
    Both kernels shrink with the grid, as TensorFlow's do: torchvision's raise below 299 px.
    """

    after: str
    pool_kernel: int
    reduce: Conv
    cover: Conv


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A whole network: trunk, optional side head, classifier."""

    name: str
    input_size: int
    num_classes: int
    stages: tuple[Stage, ...]
    side_head: SideHead | None
    dropout: float
    bn_momentum: float
    bn_eps: float


def build_architecture(
    name: str,
    *,
    num_classes: int,
    input_size: int = 299,
    width: float = 1.0,
    side_head: bool = True,
    dropout: float = 0.2,
    bn_momentum: float = 0.1,
    bn_eps: float = 1e-3,
) -> Architecture:
    """The description of a network by its name.

    width scales every layer's channels to multiples of 4; 1.0 is the published network. Raises
    ModelError: unknown name, an input under the network's minimum (computed from its own
    kernels and strides), fewer than two classes, a width that is not positive.
    """
    if name not in _TRUNKS:
        raise unknown_name("model.name", name, MODEL_NAMES)
    if num_classes < 2:
        raise ModelError(f"model.num_classes: got {num_classes}; at least 2. Write 2 or more.")
    if width <= 0:
        raise ModelError(f"model.width: got {width}; more than 0. Write 1.0 for the paper's.")

    def scale(channels: int) -> int:
        return channels if width == 1.0 else max(4, 4 * round(channels * width / 4))

    stages, side_after = _TRUNKS[name](scale)
    smallest = smallest_input(stages)
    if input_size < smallest:
        raise ModelError(
            f"model.input_size: got {input_size}; at least {smallest} px, or {name} shrinks its "
            f"grid to nothing. Write {smallest} or more (the paper's is 299)."
        )
    bare = Architecture(
        name=name,
        input_size=input_size,
        num_classes=num_classes,
        stages=stages,
        side_head=None,
        dropout=dropout,
        bn_momentum=bn_momentum,
        bn_eps=bn_eps,
    )
    if not side_head:
        return bare
    grid = input_size
    for stage in stages:
        grid = body_output(stage.body, grid)
        if stage.name == side_after:
            break
    pool_kernel = min(5, grid)
    left = (grid - pool_kernel) // 3 + 1
    cover = min(5, left)
    return replace(
        bare,
        side_head=SideHead(
            after=side_after,
            pool_kernel=pool_kernel,
            reduce=Conv(scale(128), (1, 1)),
            cover=Conv(scale(768), (cover, cover)),
        ),
    )


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


def _inception_v3(s: Callable[[int], int]) -> tuple[tuple[Stage, ...], str]:
    blocks = (
        block_a("Mixed_5b", s, pool_channels=32),
        block_a("Mixed_5c", s, pool_channels=64),
        block_a("Mixed_5d", s, pool_channels=64),
        reduction_a("Mixed_6a", s),
        block_b("Mixed_6b", s, channels=128),
        block_b("Mixed_6c", s, channels=160),
        block_b("Mixed_6d", s, channels=160),
        block_b("Mixed_6e", s, channels=192),
        reduction_b("Mixed_7a", s),
        block_c("Mixed_7b", s),
        block_c("Mixed_7c", s),
    )
    return (*stem_v3(s), *(Stage(block.name, block) for block in blocks)), "Mixed_6e"


_TRUNKS: dict[str, Callable[[Callable[[int], int]], tuple[tuple[Stage, ...], str]]] = {
    "inception_v3": _inception_v3,
}
MODEL_NAMES = tuple(_TRUNKS)
