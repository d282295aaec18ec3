"""A description -> the network, initialised from a seed of its own."""

from math import sqrt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import Block, Conv
from inception.cost import IMAGE_CHANNELS
from inception.errors import unknown_name
from inception.family import GOOGLENET_GRID, Architecture, SideHead, stage_names
from inception.layers import BlockModule, ConvBN, PoolLayer, add_nested

# Initial weights as in TensorFlow's slim release: truncated normals, cut at two deviations.
# Convolutions get variance 2 / fan_in (the 1.3 makes up for what the cut takes away), so that a
# narrower network begins alike: the older release's fixed 0.1 (Options.init) gave gradients of norm
# 100 and 3 % less accuracy at width 0.25 (measured). torchvision's classifier gets 0.1 by a slip;
# not ours.
CONV_VARIANCE_TIMES_FAN_IN = 1.3 * 2.0
CONV_FIXED_STD = 0.1
CLASSIFIER_STD = 0.01
SIDE_COVER_STD = 0.01
SIDE_CLASSIFIER_STD = 0.001


class SideHeadModule(nn.Module):
    """v3's auxiliary classifier; state-dict names `conv0`, `conv1`, `fc`."""

    def __init__(
        self, in_channels: int, head: SideHead, cover: Conv, num_classes: int, **norm: Any
    ) -> None:
        super().__init__()
        self.pool_kernel = head.pool_kernel
        self.conv0 = ConvBN(in_channels, head.reduce, **norm)
        self.conv1 = ConvBN(head.reduce.channels, cover, **norm)
        self.fc = nn.Linear(cover.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.pool_kernel, 3)  # (N, C, g, g)
        x = self.conv1(self.conv0(x))  # (N, 768, 1, 1), or a few cells at larger inputs
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 768)
        logits: Tensor = self.fc(x)  # (N, num_classes)
        return logits


class GoogLeNetSideHead(nn.Module):
    """GoogLeNet's auxiliary classifier; state-dict names `conv`, `fc1`, `fc2`. Dropout 0.7."""

    def __init__(self, in_channels: int, head: SideHead, num_classes: int, **norm: Any) -> None:
        super().__init__()
        self.conv = ConvBN(in_channels, head.reduce, **norm)
        self.fc1 = nn.Linear(head.reduce.channels * GOOGLENET_GRID**2, head.hidden)
        self.fc2 = nn.Linear(head.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, GOOGLENET_GRID)  # (N, C, 4, 4)
        x = self.conv(x).flatten(1)  # (N, 2048)
        x = F.dropout(F.relu(self.fc1(x)), 0.7, self.training)  # (N, 1024)
        logits: Tensor = self.fc2(x)  # (N, num_classes)
        return logits


class InceptionNet(nn.Module):
    """Trunk, side heads (training only) and classifier of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        norm: dict[str, Any] = {
            "bn_momentum": architecture.bn_momentum,
            "bn_eps": architecture.bn_eps,
            "activation": architecture.activation,
        }
        channels = IMAGE_CHANNELS
        for stage in architecture.stages:
            body: nn.Module
            if isinstance(stage.body, Block):
                body = BlockModule(channels, stage.body, **norm)
                channels = body.out_channels
            elif isinstance(stage.body, Conv):
                body = ConvBN(channels, stage.body, **norm)
                channels = stage.body.channels
            else:
                body = PoolLayer(stage.body)
            add_nested(self, stage.name, body)
            for side in architecture.side_heads:
                if side.after == stage.name:
                    self.add_module(side.name, _side_module(channels, side, architecture, norm))
        self._frozen: list[nn.Module] = []
        self.dropout = nn.Dropout(architecture.dropout)
        self.add_module(architecture.classifier, nn.Linear(channels, architecture.num_classes))

    def freeze_until(self, stage: str) -> None:
        """Freezes the trunk from its beginning up to and with this stage: weights, biases, batch
        norm and its statistics. Raises ModelError for a stage that the network has not."""
        names = stage_names(self.architecture)
        if stage not in names:
            raise unknown_name("model.freeze_until", stage, names)
        self._frozen = [self.get_submodule(n) for n in names[: names.index(stage) + 1]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Frozen stages stay in evaluation mode: their batch norms use what they have learnt."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """images: float32 (N, 3, H, W) in -1..1 -> logits (N, num_classes); in training
        (logits, each side head's logits)."""
        x = images
        side_logits = []
        for stage in self.architecture.stages:
            x = self.get_submodule(stage.name)(x)  # (N, C, H', W')
            if self.training:
                side_logits += [
                    self.get_submodule(side.name)(x)  # (N, num_classes)
                    for side in self.architecture.side_heads
                    if side.after == stage.name
                ]
        x = F.adaptive_avg_pool2d(x, 1)  # (N, C, 1, 1)
        x = self.dropout(x).flatten(1)  # (N, C)
        logits: Tensor = self.get_submodule(self.architecture.classifier)(x)  # (N, num_classes)
        return (logits, tuple(side_logits)) if self.training else logits


def _side_module(
    channels: int, side: SideHead, architecture: Architecture, norm: dict[str, Any]
) -> nn.Module:
    if side.cover is None:
        return GoogLeNetSideHead(channels, side, architecture.num_classes, **norm)
    return SideHeadModule(channels, side, side.cover, architecture.num_classes, **norm)


def build_network(architecture: Architecture, *, seed: int = 0) -> InceptionNet:
    """The network, its weights drawn from `seed` alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        network = InceptionNet(architecture)
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = _std(name, module.weight, architecture)
            nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _std(name: str, weight: Tensor, architecture: Architecture) -> float:
    if name == architecture.classifier:
        return CLASSIFIER_STD
    sides = [side.name for side in architecture.side_heads]
    if name in [f"{side}.{layer}" for side in sides for layer in ("fc", "fc2")]:
        return SIDE_CLASSIFIER_STD
    if name in [f"{side}.conv1.conv" for side in sides]:
        return SIDE_COVER_STD
    if architecture.init == "fixed" and weight.ndim == 4:
        return CONV_FIXED_STD
    return sqrt(CONV_VARIANCE_TIMES_FAN_IN / weight[0].numel())
