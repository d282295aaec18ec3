"""The modules that a description is built from."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import Block, Conv, ParallelConvs, Pool

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "relu6": F.relu6}


class ConvBN(nn.Module):
    """A `Conv`; state-dict names `conv` and `bn`."""

    def __init__(
        self, in_channels: int, spec: Conv, *, bn_momentum: float, bn_eps: float, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            spec.channels,
            spec.kernel,
            spec.stride,
            spec.padding,
            bias=not spec.has_norm,
        )
        self.bn = (
            nn.BatchNorm2d(spec.channels, eps=bn_eps, momentum=bn_momentum)
            if spec.has_norm
            else None
        )
        self.activation = None if spec.is_linear else ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # (N, channels, H', W')
        if self.bn is not None:
            x = self.bn(x)
        return x if self.activation is None else self.activation(x, inplace=True)


BuildConv = Callable[[int, Conv], ConvBN]  # (in_channels, spec) -> module


def pool(x: Tensor, spec: Pool) -> Tensor:
    """Max or average pool: (N, C, H, W) -> (N, C, H', W')."""
    if spec.kind == "max":
        return F.max_pool2d(x, spec.kernel, spec.stride, spec.padding, ceil_mode=spec.rounds_up)
    return F.avg_pool2d(
        x,
        spec.kernel,
        spec.stride,
        spec.padding,
        ceil_mode=spec.rounds_up,
        count_include_pad=spec.counts_padding,
    )


class PoolLayer(nn.Module):
    """A pool between blocks."""

    def __init__(self, spec: Pool) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return pool(x, self.spec)  # (N, C, H', W')


class BlockModule(nn.Module):
    """Parallel branches, concatenated. Convolutions are registered in the branches' order, under
    their state-dict names."""

    def __init__(self, in_channels: int, block: Block, build_conv: BuildConv) -> None:
        super().__init__()
        self.branches = block.branches
        self.out_channels = 0
        for branch in block.branches:
            channels = in_channels
            for layer, names in zip(branch.layers, branch.conv_names, strict=True):
                if isinstance(layer, Pool):
                    continue
                convs = layer.convs if isinstance(layer, ParallelConvs) else (layer,)
                for name, conv in zip(names, convs, strict=True):
                    add_nested(self, name, build_conv(channels, conv))
                channels = sum(conv.channels for conv in convs)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            y = x
            for layer, names in zip(branch.layers, branch.conv_names, strict=True):
                if isinstance(layer, Pool):
                    y = pool(y, layer)
                elif isinstance(layer, ParallelConvs):
                    y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
                else:
                    y = self.get_submodule(names[0])(y)
            outputs.append(y)
        return torch.cat(outputs, 1)  # (N, out_channels, H', W')


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
