"""Exponential moving average of the weights, batch-norm statistics included."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """average += (1 - d) x (weight - average) after each step, d = min(decay, (1 + t) / (10 + t)).

    The ramp is that of TensorFlow's ExponentialMovingAverage with num_updates; without it, a short
    run would evaluate its initial weights. Batch-norm running statistics are averaged too, as in
    the released code.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999) -> None:
        self._decay, self._updates = decay, 0
        tensors = _averaged(model)
        self._tensors = list(tensors.values())
        self._averages = {name: tensor.clone() for name, tensor in tensors.items()}

    def update(self) -> None:
        """Averages in the model's current weights; to be called after each optimizer step."""
        ramp = (1 + self._updates) / (10 + self._updates)
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, self._tensors, 1 - min(self._decay, ramp))
        self._updates += 1

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block, a model of the same architecture has the averages; after it, its own
        weights again, bitwise."""
        tensors = list(_averaged(model).values())
        saved = [tensor.clone() for tensor in tensors]
        torch._foreach_copy_(tensors, list(self._averages.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(tensors, saved)

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "tensors": {name: tensor}}, loadable with weights_only=True."""
        return {"updates": self._updates, "tensors": dict(self._averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError if a name is missing."""
        self._updates = int(state["updates"])
        for name, average in self._averages.items():
            average.copy_(state["tensors"][name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers, by state-dict name, in the model's memory."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return parameters | {name: b for name, b in model.named_buffers() if b.is_floating_point()}
