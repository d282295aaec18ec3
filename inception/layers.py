"""The modules that a description is built from."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inception.blocks import Block, Conv, Pool
from inception.family import Architecture
from inception.row_groups import GroupedBatchNorm2d

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def build_layer(spec: Conv | Pool, in_channels: int, architecture: Architecture) -> nn.Module:
    """A pool, or a convolution with batch norm: state-dict names `conv` and `bn`."""
    window = (spec.kernel, spec.stride, spec.padding)
    if isinstance(spec, Pool) and spec.kind == "max":
        return nn.MaxPool2d(*window, ceil_mode=spec.rounds_up)
    if isinstance(spec, Pool):
        return nn.AvgPool2d(*window, spec.rounds_up, spec.counts_padding)
    conv = nn.Conv2d(in_channels, spec.channels, *window, bias=not spec.has_norm)
    modules = OrderedDict[str, nn.Module](conv=conv)
    if spec.has_norm:
        modules["bn"] = GroupedBatchNorm2d(
            spec.channels, architecture.bn_eps, architecture.bn_momentum
        )
    if not spec.is_linear:
        modules["activation"] = ACTIVATIONS[architecture.activation](inplace=True)
    return nn.Sequential(modules)


class GridMean(nn.AdaptiveAvgPool2d):
    """The mean over each cell of a coarser grid, (N, C, H, W) -> (N, C, G, G). CUDA has torch's
    gradient of it in no fixed order only."""

    def __init__(self, grid: int) -> None:
        super().__init__(grid)
        self.grid = grid

    def forward(self, input: Tensor) -> Tensor:
        return self.forward_in_order(input) if input.is_cuda else super().forward(input)

    def forward_in_order(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            cells = range(0, self.grid * x.shape[dim], x.shape[dim])  # in units of 1 / grid
            bounds = [(i // self.grid, -(-(i + x.shape[dim]) // self.grid)) for i in cells]
            x = torch.cat([x.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in bounds], dim)
        return x


class BlockModule(nn.Module):
    """Parallel branches, concatenated. Layers are registered in the branches' order."""

    def __init__(self, block: Block, in_channels: int, architecture: Architecture) -> None:
        super().__init__()
        self.block, self._architecture = block, architecture
        self._add(block, "", in_channels)

    def _add(self, block: Block, prefix: str, in_channels: int) -> int:
        """Registers a block's layers; -> its output channels."""
        out_channels = 0
        for branch in block.branches:
            channels = in_channels
            for layer, name in zip(branch.layers, branch.layer_names, strict=True):
                if isinstance(layer, Block):
                    channels = self._add(layer, prefix + name, channels)
                    continue
                module = build_layer(layer, channels, self._architecture)
                add_nested(self, prefix + name, module)
                if isinstance(layer, Conv):
                    channels = layer.channels
            out_channels += channels
        return out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self._concatenate(self.block, "", x)  # (N, channels, H', W')

    def _concatenate(self, block: Block, prefix: str, x: Tensor) -> Tensor:
        outputs = []
        for branch in block.branches:
            y = x
            for layer, name in zip(branch.layers, branch.layer_names, strict=True):
                if isinstance(layer, Block):
                    y = self._concatenate(layer, prefix + name, y)
                else:
                    y = self.get_submodule(prefix + name)(y)
            outputs.append(y)
        return torch.cat(outputs, 1)


def add_nested(module: nn.Module, name: str, child: nn.Module) -> None:
    """Registers `child` under a name whose dots separate nested modules."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in dict(module.named_children()):
            module.add_module(parent, nn.Module())
        module = module.get_submodule(parent)
    module.add_module(last, child)


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 in -1..1, Inception's scaling, same memory layout.

    Floats count as scaled already and are returned unchanged.
    """
    if images.is_floating_point():
        return images
    return images.to(torch.float32).div_(127.5).sub_(1.0)
