"""The modules that a description turns into."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import Block, Conv, Fork, Pool

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "relu6": F.relu6}


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation; state-dict names `conv` and `bn`. Without
    norm: a bias instead."""

    def __init__(
        self,
        in_channels: int,
        conv: Conv,
        *,
        bn_momentum: float,
        bn_eps: float,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            conv.channels,
            conv.kernel,
            conv.stride,
            conv.padding,
            bias=not conv.has_norm,
        )
        self.bn = (
            nn.BatchNorm2d(conv.channels, eps=bn_eps, momentum=bn_momentum)
            if conv.has_norm
            else None
        )
        self.activation = None if conv.is_linear else ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # (N, channels, H', W')
        if self.bn is not None:
            x = self.bn(x)
        return x if self.activation is None else self.activation(x, inplace=True)


def pool(x: Tensor, described: Pool) -> Tensor:
    """Max or average pool."""
    kernel, stride, padding = described.kernel, described.stride, described.padding
    if described.kind == "max":
        return F.max_pool2d(
            x, kernel, stride, padding, ceil_mode=described.rounds_up
        )  # (N, C, H', W')
    return F.avg_pool2d(
        x,
        kernel,
        stride,
        padding,
        ceil_mode=described.rounds_up,
        count_include_pad=described.counts_padding,
    )  # (N, C, H', W')


class PoolLayer(nn.Module):
    """A pool of the trunk."""

    def __init__(self, described: Pool) -> None:
        super().__init__()
        self.described = described

    def forward(self, x: Tensor) -> Tensor:
        return pool(x, self.described)  # (N, C, H', W')


class BlockModule(nn.Module):
    """Parallel branches, concatenated. Convolutions are registered in the branches' order, under
    the names that the description gives them (a dot makes a module inside a module)."""

    def __init__(
        self,
        in_channels: int,
        block: Block,
        *,
        bn_momentum: float,
        bn_eps: float,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.branches = block.branches
        self.out_channels = 0
        for branch in block.branches:
            channels = in_channels
            for layer, names in zip(branch.layers, branch.names, strict=True):
                if isinstance(layer, Pool):
                    continue
                convs = layer.outputs if isinstance(layer, Fork) else (layer,)
                for name, conv in zip(names, convs, strict=True):
                    made = ConvBN(
                        channels,
                        conv,
                        bn_momentum=bn_momentum,
                        bn_eps=bn_eps,
                        activation=activation,
                    )
                    add_nested(self, name, made)
                channels = sum(conv.channels for conv in convs)
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        ends = []
        for branch in self.branches:
            y = x
            for layer, names in zip(branch.layers, branch.names, strict=True):
                if isinstance(layer, Pool):
                    y = pool(y, layer)
                elif isinstance(layer, Fork):
                    y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
                else:
                    y = self.get_submodule(names[0])(y)
            ends.append(y)
        return torch.cat(ends, 1)  # (N, out_channels, H', W')


def add_nested(module: nn.Module, name: str, child: nn.Module) -> None:
    """Registers `child` under a name that may hold dots."""
    *folders, last = name.split(".")
    for folder in folders:
        if folder not in dict(module.named_children()):
            module.add_module(folder, nn.Module())
        module = module.get_submodule(folder)
    module.add_module(last, child)


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 in -1..1, Inception's own scaling, same layout.

    Floats are taken to be scaled already and come back as they are.
    """
    if images.is_floating_point():
        return images
    return images.to(torch.float32).div_(127.5).sub_(1.0)
