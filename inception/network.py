"""Builds a network from its description, with weights drawn from a seed."""

from collections import OrderedDict
from math import sqrt
from typing import Self

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from inception.blocks import GOOGLENET_AUX_GRID, AuxHead, Block
from inception.cost import IMAGE_CHANNELS, count_cost
from inception.family import Architecture, stage_names
from inception.layers import BlockModule, GridMean, add_nested, build_layer
from inception.row_groups import GroupedBatchNorm2d, GroupedDropout

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


def build_aux_head(head: AuxHead, in_channels: int, architecture: Architecture) -> nn.Sequential:
    """State-dict names: v3's `conv0`, `conv1`, `fc`; GoogLeNet's `conv`, `fc1`, `fc2`."""
    channels, num_classes = head.conv0.channels, architecture.num_classes
    conv0 = build_layer(head.conv0, in_channels, architecture)
    if head.conv1 is None:
        modules = OrderedDict[str, nn.Module](
            pool=GridMean(GOOGLENET_AUX_GRID),  # (N, C, 4, 4)
            conv=conv0,
            flatten=nn.Flatten(),  # (N, 2048)
            fc1=nn.Linear(channels * GOOGLENET_AUX_GRID**2, head.hidden),  # (N, 1024)
            relu=nn.ReLU(),
            dropout=GroupedDropout(0.7),
            fc2=nn.Linear(head.hidden, num_classes),
        )
    else:
        modules = OrderedDict[str, nn.Module](
            pool=nn.AvgPool2d(head.pool_size, 3),  # (N, C, g, g)
            conv0=conv0,
            # (N, 768, 1, 1), or a few cells at larger inputs
            conv1=build_layer(head.conv1, channels, architecture),
            mean=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),  # (N, 768)
            fc=nn.Linear(head.conv1.channels, num_classes),
        )
    return nn.Sequential(modules)


class InceptionNet(nn.Module):
    """Stages, auxiliary heads (training only) and classifier of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        channels = IMAGE_CHANNELS
        for stage, cost in zip(architecture.stages, count_cost(architecture).stages, strict=True):
            if isinstance(stage.body, Block):
                add_nested(self, stage.name, BlockModule(stage.body, channels, architecture))
            else:
                add_nested(self, stage.name, build_layer(stage.body, channels, architecture))
            channels = cost.channels
            for head in architecture.aux_heads:
                if head.after == stage.name:
                    self.add_module(head.name, build_aux_head(head, channels, architecture))
        self._frozen: list[nn.Module] = []
        self.group_size: int | None = None
        self.dropout = GroupedDropout(architecture.dropout)
        self.add_module(architecture.classifier, nn.Linear(channels, architecture.num_classes))
        self.dropouts = [m for m in self.modules() if isinstance(m, GroupedDropout)]

    def set_group_size(self, rows: int | None) -> None:
        """In training, batch norm takes so many consecutive rows of a pass together. None: all."""
        self.group_size = rows
        for module in self.modules():
            if isinstance(module, GroupedBatchNorm2d):
                module.group_size = rows

    def freeze_until(self, stage: str) -> None:
        """Freezes weights, biases and batch-norm statistics from the first stage to this one,
        inclusive."""
        names = stage_names(self.architecture)
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


def evaluation_graph(network: InceptionNet) -> ExportedProgram:
    """Any number of images, float32 (N, 3, S, S), RGB in -1..1 -> logits (N, C).
    network: in evaluation mode, on the CPU."""
    size = network.architecture.input_size
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
