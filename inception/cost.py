"""Parameters and multiply-adds of a network, counted from its description. No torch here.

A multiply-add is one product summed into an output. As usual, convolutions and fully connected
layers are counted, and batch norm, pools and activations are not: 5.713 G for inception_v3 at 299.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from inception.blocks import GOOGLENET_AUX_GRID, AuxHead, Conv, Layer, Pool
from inception.family import Architecture, output_size

IMAGE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """Of a stage, or of unnamed layers in it. grid: cells on a side of the output."""

    name: str = ""
    grid: int
    channels: int
    multiply_adds: int = 0
    parameters: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """parameters: auxiliary heads included; multiply_adds: of one image, without them."""

    parameters: int
    aux_head_parameters: int
    multiply_adds: int
    stages: tuple[StageCost, ...]


def count_cost(architecture: Architecture) -> Cost:
    """Counts a description stage by stage."""
    x = StageCost(grid=architecture.input_size, channels=IMAGE_CHANNELS)
    num_classes = architecture.num_classes
    by_name = {}
    for stage in architecture.stages:
        x = replace(_count(stage.body, x), name=stage.name)
        by_name[stage.name] = x
    stages = tuple(by_name.values())
    aux_parameters = sum(
        _aux_head_parameters(head, by_name[head.after], num_classes)
        for head in architecture.aux_heads
    )
    classifier = x.channels * num_classes
    return Cost(
        parameters=sum(s.parameters for s in stages) + classifier + num_classes + aux_parameters,
        aux_head_parameters=aux_parameters,
        multiply_adds=sum(s.multiply_adds for s in stages) + classifier,
        stages=stages,
    )


def _aux_head_parameters(head: AuxHead, x: StageCost, num_classes: int) -> int:
    if head.conv1 is None:
        y = _count(head.conv0, x)
        hidden = (y.channels * GOOGLENET_AUX_GRID**2 + 1) * head.hidden
        return y.parameters + hidden + (head.hidden + 1) * num_classes
    y = _count_chain((head.conv0, head.conv1), x)
    return y.parameters + (y.channels + 1) * num_classes


def _count(layer: Layer, x: StageCost) -> StageCost:
    """The cost of a layer with input x, of which only the grid and the channels matter."""
    if isinstance(layer, Pool):
        return StageCost(grid=output_size([layer], x.grid), channels=x.channels)
    if isinstance(layer, Conv):
        grid = output_size([layer], x.grid)
        weights = x.channels * layer.channels * layer.kernel[0] * layer.kernel[1]
        per_channel = 2 if layer.has_norm else 1  # batch norm's weight and bias, or a bias
        return StageCost(
            grid=grid,
            channels=layer.channels,
            multiply_adds=weights * grid * grid,
            parameters=weights + per_channel * layer.channels,
        )
    outputs = [_count_chain(branch.layers, x) for branch in layer.branches]
    return StageCost(
        grid=min(y.grid for y in outputs),
        channels=sum(y.channels for y in outputs),
        multiply_adds=sum(y.multiply_adds for y in outputs),
        parameters=sum(y.parameters for y in outputs),
    )


def _count_chain(layers: Iterable[Layer], x: StageCost) -> StageCost:
    multiply_adds = parameters = 0
    for layer in layers:
        x = _count(layer, x)
        multiply_adds += x.multiply_adds
        parameters += x.parameters
    return replace(x, multiply_adds=multiply_adds, parameters=parameters)
