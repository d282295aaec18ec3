"""Parameters and multiply-adds of a network, counted from its description. No torch here.

A multiply-add is one product summed into an output. As usual, convolutions and fully connected
layers are counted, and batch norm, pools and activations are not: 5.713 G for inception_v3 at 299.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from inception.blocks import (
    GOOGLENET_AUX_GRID,
    AuxHead,
    Block,
    Conv,
    Layer,
    ParallelConvs,
    Pool,
)
from inception.family import Architecture, output_size

IMAGE_CHANNELS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """grid: cells on a side of the stage's output."""

    name: str
    grid: int
    channels: int
    multiply_adds: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """parameters: auxiliary heads included; multiply_adds: of one image, without them."""

    parameters: int
    aux_head_parameters: int
    multiply_adds: int
    stages: tuple[StageCost, ...]


@dataclass(frozen=True, slots=True)
class _Output:
    """The output of a layer or of several, and what they cost."""

    channels: int
    grid: int
    multiply_adds: int = 0
    parameters: int = 0


def count_cost(architecture: Architecture) -> Cost:
    """Counts a description stage by stage."""
    x = _Output(IMAGE_CHANNELS, architecture.input_size)
    num_classes = architecture.num_classes
    stages = []
    aux_parameters = 0
    for stage in architecture.stages:
        x = _count(stage.body, x)
        stages.append(
            StageCost(
                name=stage.name,
                grid=x.grid,
                channels=x.channels,
                multiply_adds=x.multiply_adds,
                parameters=x.parameters,
            )
        )
        aux_parameters += sum(
            _aux_head_parameters(head, x, num_classes)
            for head in architecture.aux_heads
            if head.after == stage.name
        )
    classifier = x.channels * num_classes
    return Cost(
        parameters=sum(s.parameters for s in stages) + classifier + num_classes + aux_parameters,
        aux_head_parameters=aux_parameters,
        multiply_adds=sum(s.multiply_adds for s in stages) + classifier,
        stages=tuple(stages),
    )


def _aux_head_parameters(head: AuxHead, x: _Output, num_classes: int) -> int:
    if head.conv1 is None:
        y = _conv(head.conv0, _Output(x.channels, GOOGLENET_AUX_GRID))
        hidden = (y.channels * GOOGLENET_AUX_GRID**2 + 1) * head.hidden
        return y.parameters + hidden + (head.hidden + 1) * num_classes
    y = _conv(head.conv0, _Output(x.channels, (x.grid - head.pool_size) // 3 + 1))
    z = _conv(head.conv1, y)
    return y.parameters + z.parameters + (z.channels + 1) * num_classes


def _count(body: Layer | Block, x: _Output) -> _Output:
    if isinstance(body, Conv):
        return _conv(body, x)
    if isinstance(body, Pool):
        return _Output(x.channels, output_size(body, x.grid))
    if isinstance(body, ParallelConvs):
        return _concatenated([_conv(conv, x) for conv in body.convs])
    return _concatenated([_chain(branch.layers, x) for branch in body.branches])


def _chain(layers: Sequence[Layer], x: _Output) -> _Output:
    multiply_adds = parameters = 0
    for layer in layers:
        x = _count(layer, x)
        multiply_adds += x.multiply_adds
        parameters += x.parameters
    return _Output(x.channels, x.grid, multiply_adds, parameters)


def _concatenated(outputs: Sequence[_Output]) -> _Output:
    return _Output(
        sum(y.channels for y in outputs),
        min(y.grid for y in outputs),
        sum(y.multiply_adds for y in outputs),
        sum(y.parameters for y in outputs),
    )


def _conv(conv: Conv, x: _Output) -> _Output:
    grid = output_size(conv, x.grid)
    weights = x.channels * conv.channels * conv.kernel[0] * conv.kernel[1]
    per_channel = 2 if conv.has_norm else 1  # batch norm's weight and bias, or a bias
    return _Output(
        conv.channels, grid, weights * grid * grid, weights + per_channel * conv.channels
    )
