"""Optimizers: TensorFlow's RMSProp, which differs from torch's, and torch's SGD and AdamW."""

from typing import Any

import torch
from torch import Tensor, nn

from inception.errors import unknown_name
from inception.recipes import OPTIMIZER_NAMES


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow computes it.

        g  += weight_decay * w
        ms += (1 - decay) * (g^2 - ms)                   the mean square starts at 1
        mom = momentum * mom + lr * g / sqrt(ms + eps)   eps inside the root, lr inside the buffer
        w  -= mom

    torch.optim.RMSprop starts at 0, adds eps outside the root and applies the learning rate after
    the momentum: with Inception's eps = 1.0, the updates differ.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient; gradients are not changed."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["mean_square"] = torch.ones_like(p)
                    self.state[p]["momentum"] = torch.zeros_like(p)
            mean_squares = [self.state[p]["mean_square"] for p in params]
            momenta = [self.state[p]["momentum"] for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(mean_squares, group["decay"])
            torch._foreach_addcmul_(mean_squares, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_add(mean_squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_addcdiv_(momenta, grads, roots, value=group["lr"])
            torch._foreach_sub_(params, momenta)


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay: float = 0.9,
    eps: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer by name; the keywords are a job's `optim` fields.

    Weight decay applies to convolutions and fully connected layers, not to batch norm and biases
    (TensorFlow's release; gluon's recipe). Frozen parameters are left out. `sgd` uses Nesterov
    momentum; `adamw` torch's default betas and eps. Raises ModelError for another name.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "rmsprop_tf":
        return RMSpropTF(groups, lr=lr, decay=decay, momentum=momentum, eps=eps)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    raise unknown_name("optim.name", name, OPTIMIZER_NAMES)
