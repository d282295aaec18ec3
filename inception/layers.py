"""The modules that a description turns into."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import Block, Conv, Fork, Pool


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, ReLU; state-dict names `conv` and `bn`."""

    def __init__(self, in_channels: int, conv: Conv, *, bn_momentum: float, bn_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, conv.channels, conv.kernel, conv.stride, conv.padding, bias=False
        )
        self.bn = nn.BatchNorm2d(conv.channels, eps=bn_eps, momentum=bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)  # (N, channels, H', W')


def pool(x: Tensor, described: Pool) -> Tensor:
    """Max or average pool; the average counts padding, as torchvision's does."""
    kernel, stride, padding = described.kernel, described.stride, described.padding
    if described.kind == "max":
        return F.max_pool2d(x, kernel, stride, padding)  # (N, C, H', W')
    return F.avg_pool2d(x, kernel, stride, padding)  # (N, C, H', W')


class PoolLayer(nn.Module):
    """A pool of the trunk."""

    def __init__(self, described: Pool) -> None:
        super().__init__()
        self.described = described

    def forward(self, x: Tensor) -> Tensor:
        return pool(x, self.described)  # (N, C, H', W')


class BlockModule(nn.Module):
    """Parallel branches, concatenated. Convolutions are registered flat, in the branches' order,
    under the names that the description gives them."""

    def __init__(
        self, in_channels: int, block: Block, *, bn_momentum: float, bn_eps: float
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
                    made = ConvBN(channels, conv, bn_momentum=bn_momentum, bn_eps=bn_eps)
                    self.add_module(name, made)
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


def normalize(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) in 0..255 -> float32 in -1..1, Inception's own scaling, same layout.

    Floats are taken to be scaled already and come back as they are.
    """
    if images.is_floating_point():
        return images
    return images.to(torch.float32).div_(127.5).sub_(1.0)
