"""The running average of the weights, batch-norm statistics included."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from inception.statistics import average_over_ranks, running_statistics


class WeightAverage:
    """average += (1 - d) x (weight - average) after each step, d = min(decay, (1 + t) / (10 + t)).

    The ramp is TensorFlow's ExponentialMovingAverage with num_updates: without it a short run
    would evaluate its initial weights. Batch-norm running statistics are averaged too, as the
    released code does; they are this rank's own until `average_statistics`.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.9999) -> None:
        self._decay = decay
        self._updates = 0
        self._names = [name for name, _ in _averaged(model)]
        self._live = [tensor for _, tensor in _averaged(model)]
        self._average = [tensor.detach().clone() for tensor in self._live]
        statistics = {id(tensor) for tensor in running_statistics(model)}
        self._statistics = [
            kept
            for live, kept in zip(self._live, self._average, strict=True)
            if id(live) in statistics
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights; call it after each optimizer step."""
        ramp = (1 + self._updates) / (10 + self._updates)
        torch._foreach_lerp_(
            self._average, [t.detach() for t in self._live], 1 - min(self._decay, ramp)
        )
        self._updates += 1

    def average_statistics(self) -> None:
        """Averages the averaged batch-norm statistics over ranks. All ranks take part."""
        average_over_ranks(self._statistics)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Writes the averages into a model of the same architecture."""
        targets = [tensor.detach() for _, tensor in _averaged(model)]
        torch._foreach_copy_(targets, self._average)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averages within the block, and its own weights bitwise after it."""
        own = [tensor.detach().clone() for _, tensor in _averaged(model)]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([tensor.detach() for _, tensor in _averaged(model)], own)

    def state_dict(self) -> dict[str, Any]:
        """{"updates": int, "tensors": {name: tensor}}, loadable with weights_only=True."""
        return {
            "updates": self._updates,
            "tensors": dict(zip(self._names, self._average, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError where a name is missing."""
        self._updates = int(state["updates"])
        torch._foreach_copy_(self._average, [state["tensors"][name] for name in self._names])


def _averaged(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and floating-point buffers, by state-dict name."""
    named: list[tuple[str, Tensor]] = list(model.named_parameters())
    named += [
        (name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()
    ]
    return named
