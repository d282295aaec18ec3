"""A description -> the network, initialised from a seed of its own."""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import Block, Conv
from inception.cost import IMAGE_CHANNELS
from inception.family import Architecture, SideHead
from inception.layers import BlockModule, ConvBN, PoolLayer

# Initial weights as in TensorFlow's slim release: truncated normals, cut at two deviations.
# Convolutions get variance 2 / fan_in (the 1.3 makes up for what the cut takes away), so that a
# narrower network begins alike: the older release's fixed 0.1 gave gradients of norm 100 and 3 %
# less accuracy at width 0.25 (measured). torchvision's classifier gets 0.1 by a slip; not ours.
CONV_VARIANCE_TIMES_FAN_IN = 1.3 * 2.0
CLASSIFIER_STD = 0.01
SIDE_COVER_STD = 0.01
SIDE_CLASSIFIER_STD = 0.001


class SideHeadModule(nn.Module):
    """The auxiliary classifier; state-dict names `conv0`, `conv1`, `fc`."""

    def __init__(
        self,
        in_channels: int,
        head: SideHead,
        num_classes: int,
        *,
        bn_momentum: float,
        bn_eps: float,
    ) -> None:
        super().__init__()
        self.pool_kernel = head.pool_kernel
        self.conv0 = ConvBN(in_channels, head.reduce, bn_momentum=bn_momentum, bn_eps=bn_eps)
        self.conv1 = ConvBN(
            head.reduce.channels, head.cover, bn_momentum=bn_momentum, bn_eps=bn_eps
        )
        self.fc = nn.Linear(head.cover.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.pool_kernel, 3)  # (N, C, g, g)
        x = self.conv1(self.conv0(x))  # (N, 768, 1, 1), or a few cells at larger inputs
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 768)
        logits: Tensor = self.fc(x)  # (N, num_classes)
        return logits


class InceptionNet(nn.Module):
    """Trunk, side head (training only) and classifier of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        bn = {"bn_momentum": architecture.bn_momentum, "bn_eps": architecture.bn_eps}
        channels = IMAGE_CHANNELS
        names = []
        for stage in architecture.stages:
            body: nn.Module
            if isinstance(stage.body, Block):
                body = BlockModule(channels, stage.body, **bn)
                channels = body.out_channels
            elif isinstance(stage.body, Conv):
                body = ConvBN(channels, stage.body, **bn)
                channels = stage.body.channels
            else:
                body = PoolLayer(stage.body)
            self.add_module(stage.name, body)
            names.append(stage.name)
            side = architecture.side_head
            if side is not None and side.after == stage.name:
                self.AuxLogits = SideHeadModule(channels, side, architecture.num_classes, **bn)
        self.stage_names = tuple(names)
        self.side_after = architecture.side_head.after if architecture.side_head else None
        self.dropout = nn.Dropout(architecture.dropout)
        self.fc = nn.Linear(channels, architecture.num_classes)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """images: float32 (N, 3, H, W) in -1..1 -> logits (N, num_classes); in training
        (logits, side logits or None)."""
        x = images
        side_logits = None
        for name in self.stage_names:
            x = self.get_submodule(name)(x)  # (N, C, H', W')
            if self.training and name == self.side_after:
                side_logits = self.AuxLogits(x)  # (N, num_classes)
        x = F.adaptive_avg_pool2d(x, 1)  # (N, C, 1, 1)
        x = self.dropout(x).flatten(1)  # (N, C)
        logits: Tensor = self.fc(x)  # (N, num_classes)
        return (logits, side_logits) if self.training else logits


def build_network(architecture: Architecture, *, seed: int = 0) -> InceptionNet:
    """The network, its weights drawn from `seed` alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        network = InceptionNet(architecture)
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = _std(name, module.weight)
            nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _std(name: str, weight: Tensor) -> float:
    if name == "fc":
        return CLASSIFIER_STD
    if name == "AuxLogits.fc":
        return SIDE_CLASSIFIER_STD
    if name == "AuxLogits.conv1.conv":
        return SIDE_COVER_STD
    return sqrt(CONV_VARIANCE_TIMES_FAN_IN / weight[0].numel())
