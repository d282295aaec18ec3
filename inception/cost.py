"""What a network costs, counted from its description. No torch here.

A multiply-add is one product summed into an output; convolutions and fully connected layers are
counted, batch norm, pools and activations are not (as is usual; 5.713 G for inception_v3 at 299).
"""

from dataclasses import dataclass

from inception.blocks import Block, Branch, Conv, Fork, Pool
from inception.family import (
    GOOGLENET_GRID,
    Architecture,
    SideHead,
    body_output,
    layer_output,
)

IMAGE_CHANNELS = 3
BN_PARAMETERS = 2  # weight and bias of a channel


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """One stage: its output grid (side, cells), channels, multiply-adds and parameters."""

    name: str
    grid: int
    channels: int
    multiply_adds: int
    parameters: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A whole network: parameters with the side head, multiply-adds of one image without it."""

    parameters: int
    side_head_parameters: int
    multiply_adds: int
    stages: tuple[StageCost, ...]


@dataclass(frozen=True, slots=True)
class _Flow:
    """What leaves a piece, and what the piece cost."""

    channels: int
    grid: int
    multiply_adds: int = 0
    parameters: int = 0


def count_cost(architecture: Architecture) -> Cost:
    """Counts a description stage by stage."""
    flow = _Flow(IMAGE_CHANNELS, architecture.input_size)
    stages = []
    side_parameters = 0
    for stage in architecture.stages:
        flow = _body(stage.body, flow)
        stages.append(
            StageCost(
                name=stage.name,
                grid=flow.grid,
                channels=flow.channels,
                multiply_adds=flow.multiply_adds,
                parameters=flow.parameters,
            )
        )
        for side in architecture.side_heads:
            if side.after == stage.name:
                side_parameters += _side_parameters(side, flow, architecture.num_classes)
    fc = flow.channels * architecture.num_classes
    trunk = sum(stage.parameters for stage in stages)
    return Cost(
        parameters=trunk + fc + architecture.num_classes + side_parameters,
        side_head_parameters=side_parameters,
        multiply_adds=sum(stage.multiply_adds for stage in stages) + fc,
        stages=tuple(stages),
    )


def _side_parameters(side: SideHead, flow: "_Flow", num_classes: int) -> int:
    if side.cover is None:
        reduced = _conv(side.reduce, _Flow(flow.channels, GOOGLENET_GRID))
        cells = GOOGLENET_GRID * GOOGLENET_GRID
        hidden = (reduced.channels * cells + 1) * side.hidden
        return reduced.parameters + hidden + (side.hidden + 1) * num_classes
    left = (flow.grid - side.pool_kernel) // 3 + 1
    reduced = _conv(side.reduce, _Flow(flow.channels, left))
    covered = _conv(side.cover, reduced)
    return reduced.parameters + covered.parameters + (covered.channels + 1) * num_classes


def _body(body: Conv | Pool | Block, flow: _Flow) -> _Flow:
    if isinstance(body, Conv):
        return _conv(body, flow)
    if isinstance(body, Pool):
        return _Flow(flow.channels, layer_output(body, flow.grid))
    ends = [_branch(branch, flow) for branch in body.branches]
    return _Flow(
        sum(end.channels for end in ends),
        body_output(body, flow.grid),
        sum(end.multiply_adds for end in ends),
        sum(end.parameters for end in ends),
    )


def _branch(branch: Branch, flow: _Flow) -> _Flow:
    multiply_adds = parameters = 0
    here = _Flow(flow.channels, flow.grid)
    for layer in branch.layers:
        if isinstance(layer, Fork):
            ends = [_conv(conv, here) for conv in layer.outputs]
            here = _Flow(
                sum(end.channels for end in ends),
                ends[0].grid,
                sum(end.multiply_adds for end in ends),
                sum(end.parameters for end in ends),
            )
        elif isinstance(layer, Conv):
            here = _conv(layer, here)
        else:
            here = _Flow(here.channels, layer_output(layer, here.grid))
        multiply_adds += here.multiply_adds
        parameters += here.parameters
    return _Flow(here.channels, here.grid, multiply_adds, parameters)


def _conv(conv: Conv, flow: _Flow) -> _Flow:
    grid = layer_output(conv, flow.grid)
    weights = flow.channels * conv.channels * conv.kernel[0] * conv.kernel[1]
    beside = BN_PARAMETERS if conv.has_norm else 1  # a bias
    return _Flow(conv.channels, grid, weights * grid * grid, weights + beside * conv.channels)
