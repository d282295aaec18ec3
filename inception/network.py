"""Builds a network from its description, with weights drawn from a seed."""

from functools import partial
from math import sqrt
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inception.blocks import GOOGLENET_AUX_GRID, AuxHead, Block, Conv
from inception.cost import IMAGE_CHANNELS
from inception.errors import unknown_name
from inception.family import Architecture, stage_names
from inception.layers import BlockModule, BuildConv, ConvBN, PoolLayer, add_nested

# Initial weights are truncated normals, cut at two standard deviations, as in TensorFlow-slim.
# Convolutions get variance 2 / fan_in (the factor 1.3 makes up for the cut), so that the scale of
# activations does not depend on the width. The fixed 0.1 of the older release (Options.init) gave
# gradients of norm 100 and 3 % less accuracy at width 0.25 (measured). The classifier's 0.01 is
# TensorFlow's; torchvision falls back to 0.1 there.
CONV_VARIANCE_TIMES_FAN_IN = 1.3 * 2.0
CONV_FIXED_STD = 0.1
CLASSIFIER_STD = 0.01
AUX_CONV1_STD = 0.01
AUX_CLASSIFIER_STD = 0.001


class V3AuxHead(nn.Module):
    """v3's auxiliary head; state-dict names `conv0`, `conv1`, `fc`."""

    def __init__(
        self,
        in_channels: int,
        head: AuxHead,
        conv1: Conv,
        num_classes: int,
        build_conv: BuildConv,
    ) -> None:
        super().__init__()
        self.pool_size = head.pool_size
        self.conv0 = build_conv(in_channels, head.conv0)
        self.conv1 = build_conv(head.conv0.channels, conv1)
        self.fc = nn.Linear(conv1.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.pool_size, 3)  # (N, C, g, g)
        x = self.conv1(self.conv0(x))  # (N, 768, 1, 1), or a few cells at larger inputs
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 768)
        logits: Tensor = self.fc(x)  # (N, num_classes)
        return logits


class GoogLeNetAuxHead(nn.Module):
    """GoogLeNet's auxiliary head; state-dict names `conv`, `fc1`, `fc2`. Dropout 0.7."""

    def __init__(
        self, in_channels: int, head: AuxHead, num_classes: int, build_conv: BuildConv
    ) -> None:
        super().__init__()
        self.conv = build_conv(in_channels, head.conv0)
        self.fc1 = nn.Linear(head.conv0.channels * GOOGLENET_AUX_GRID**2, head.hidden)
        self.fc2 = nn.Linear(head.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, GOOGLENET_AUX_GRID)  # (N, C, 4, 4)
        x = self.conv(x).flatten(1)  # (N, 2048)
        x = F.dropout(F.relu(self.fc1(x)), 0.7, self.training)  # (N, 1024)
        logits: Tensor = self.fc2(x)  # (N, num_classes)
        return logits


class InceptionNet(nn.Module):
    """Stages, auxiliary heads (training only) and classifier of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        num_classes = architecture.num_classes
        build_conv = partial(
            ConvBN,
            bn_momentum=architecture.bn_momentum,
            bn_eps=architecture.bn_eps,
            activation=architecture.activation,
        )
        channels = IMAGE_CHANNELS
        for stage in architecture.stages:
            body: nn.Module
            if isinstance(stage.body, Block):
                body = BlockModule(channels, stage.body, build_conv)
                channels = body.out_channels
            elif isinstance(stage.body, Conv):
                body = build_conv(channels, stage.body)
                channels = stage.body.channels
            else:
                body = PoolLayer(stage.body)
            add_nested(self, stage.name, body)
            for head in architecture.aux_heads:
                if head.after == stage.name:
                    self.add_module(
                        head.name,
                        GoogLeNetAuxHead(channels, head, num_classes, build_conv)
                        if head.conv1 is None
                        else V3AuxHead(channels, head, head.conv1, num_classes, build_conv),
                    )
        self._frozen: list[nn.Module] = []
        self.dropout = nn.Dropout(architecture.dropout)
        self.add_module(architecture.classifier, nn.Linear(channels, num_classes))

    def freeze_until(self, stage: str) -> None:
        """Freezes weights, biases and batch-norm statistics from the first stage to this one,
        inclusive. Raises ModelError for a stage that the network does not have."""
        names = stage_names(self.architecture)
        if stage not in names:
            raise unknown_name("model.freeze_until", stage, names)
        self._frozen = [self.get_submodule(name) for name in names[: names.index(stage) + 1]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Frozen stages stay in evaluation mode, so that batch norm uses its running statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        """images: float32 (N, 3, H, W) in -1..1 -> logits (N, num_classes); in training
        (logits, each auxiliary head's logits)."""
        x = images
        aux_logits = []
        for stage in self.architecture.stages:
            x = self.get_submodule(stage.name)(x)  # (N, C, H', W')
            if self.training:
                aux_logits += [
                    self.get_submodule(head.name)(x)  # (N, num_classes)
                    for head in self.architecture.aux_heads
                    if head.after == stage.name
                ]
        x = F.adaptive_avg_pool2d(x, 1)  # (N, C, 1, 1)
        x = self.dropout(x).flatten(1)  # (N, C)
        logits: Tensor = self.get_submodule(self.architecture.classifier)(x)  # (N, num_classes)
        return (logits, tuple(aux_logits)) if self.training else logits


def build_network(architecture: Architecture, *, seed: int = 0) -> InceptionNet:
    """The network with weights drawn from `seed` alone; the global generator is left unchanged."""
    with torch.random.fork_rng(devices=[]):
        network = InceptionNet(architecture)
    special_stds = {architecture.classifier: CLASSIFIER_STD}
    for head in architecture.aux_heads:
        special_stds[f"{head.name}.conv1.conv"] = AUX_CONV1_STD
        special_stds |= {f"{head.name}.{fc}": AUX_CLASSIFIER_STD for fc in ("fc", "fc2")}
    generator = torch.Generator().manual_seed(seed)
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if name in special_stds:
            std = special_stds[name]
        elif architecture.init == "fixed" and isinstance(module, nn.Conv2d):
            std = CONV_FIXED_STD
        else:
            std = sqrt(CONV_VARIANCE_TIMES_FAN_IN / module.weight[0].numel())
        nn.init.trunc_normal_(module.weight, 0.0, std, -2 * std, 2 * std, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return network
