"""A network's evaluation graph; weights can be copied in after it is traced."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from inception.network import InceptionNet


def evaluation_graph(network: InceptionNet) -> ExportedProgram:
    """Any number of images, float32 (N, 3, S, S), RGB in -1..1 -> logits (N, C).
    network: in evaluation mode, on the CPU."""
    size = network.architecture.input_size
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))


def copy_weights(graph: ExportedProgram, weights: Mapping[str, Tensor]) -> None:
    """Replaces the weights of a graph by those of the same network. Raises KeyError if one is
    missing."""
    with torch.no_grad():
        for name, tensor in graph.state_dict.items():
            tensor.copy_(weights[name])
