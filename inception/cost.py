"""Parameters, multiply-adds and activations of a network, counted from its description. No torch
here.

A multiply-add is one product summed into an output. As usual, convolutions and fully connected
layers are counted, and batch norm, pools and activations are not: 5.713 G for inception_v3 at 299.

Activations are what the backward pass needs of an image: the output of a convolution, which batch
norm keeps, what its activation keeps, a block's concatenation, a pool's output and its indices.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from inception.blocks import GOOGLENET_AUX_GRID, AuxHead, Conv, Layer, Pool
from inception.family import Architecture, output_size

IMAGE_CHANNELS = 3
FLOAT32, INDEX = 4, 8  # bytes
# Tensors: relu's output; relu6's input, and its output, which the next layer keeps.
KEPT_BY_ACTIVATION = {"relu": 1, "relu6": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """Of a stage, or of unnamed layers in it. grid: cells on a side of the output."""

    name: str = ""
    grid: int
    channels: int
    multiply_adds: int = 0
    parameters: int = 0
    activation_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """parameters: auxiliary heads included. Of one image, without them: multiply_adds, and
    activation_bytes in float32."""

    parameters: int
    aux_head_parameters: int
    multiply_adds: int
    activation_bytes: int
    stages: tuple[StageCost, ...]


def count_cost(architecture: Architecture) -> Cost:
    """Counts a description stage by stage."""
    x = StageCost(grid=architecture.input_size, channels=IMAGE_CHANNELS)
    num_classes = architecture.num_classes
    by_name = {}
    for stage in architecture.stages:
        x = replace(_count(stage.body, x, architecture.activation), name=stage.name)
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
        activation_bytes=sum(s.activation_bytes for s in stages)
        + FLOAT32 * IMAGE_CHANNELS * architecture.input_size**2,
        stages=stages,
    )


def _aux_head_parameters(head: AuxHead, x: StageCost, num_classes: int) -> int:
    if head.conv1 is None:
        y = _count(head.conv0, x)
        hidden = (y.channels * GOOGLENET_AUX_GRID**2 + 1) * head.hidden
        return y.parameters + hidden + (head.hidden + 1) * num_classes
    y = _count_chain((head.conv0, head.conv1), x)
    return y.parameters + (y.channels + 1) * num_classes


def _count(layer: Layer, x: StageCost, activation: str = "relu") -> StageCost:
    """The cost of a layer with input x, of which only the grid and the channels matter."""
    if isinstance(layer, Pool):
        grid = output_size([layer], x.grid)
        value_bytes = FLOAT32 + INDEX if layer.kind == "max" else FLOAT32
        return StageCost(
            grid=grid, channels=x.channels, activation_bytes=value_bytes * x.channels * grid * grid
        )
    if isinstance(layer, Conv):
        grid = output_size([layer], x.grid)
        weights = x.channels * layer.channels * layer.kernel[0] * layer.kernel[1]
        per_channel = 2 if layer.has_norm else 1  # batch norm's weight and bias, or a bias
        kept = KEPT_BY_ACTIVATION[activation] + (1 if layer.has_norm else 0)
        return StageCost(
            grid=grid,
            channels=layer.channels,
            multiply_adds=weights * grid * grid,
            parameters=weights + per_channel * layer.channels,
            activation_bytes=kept * FLOAT32 * layer.channels * grid * grid,
        )
    outputs = [_count_chain(branch.layers, x, activation) for branch in layer.branches]
    grid, channels = min(y.grid for y in outputs), sum(y.channels for y in outputs)
    return StageCost(
        grid=grid,
        channels=channels,
        # Of the branches' own outputs and their concatenation, relu6 keeps one only.
        activation_bytes=sum(y.activation_bytes for y in outputs)
        + (FLOAT32 * channels * grid * grid if activation == "relu" else 0),
        multiply_adds=sum(y.multiply_adds for y in outputs),
        parameters=sum(y.parameters for y in outputs),
    )


def _count_chain(layers: Iterable[Layer], x: StageCost, activation: str = "relu") -> StageCost:
    outputs = []
    for layer in layers:
        x = _count(layer, x, activation)
        outputs.append(x)
    return replace(
        x,
        multiply_adds=sum(y.multiply_adds for y in outputs),
        parameters=sum(y.parameters for y in outputs),
        activation_bytes=sum(y.activation_bytes for y in outputs),
    )
