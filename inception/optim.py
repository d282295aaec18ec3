"""Optimizers: TensorFlow's RMSProp, which is not torch's, and torch's own SGD and AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inception.errors import unknown_name
from inception.recipes import OPTIMIZER_NAMES

FUSED_ON = ("cpu", "cuda")  # where torch's own SGD and AdamW run as one kernel


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow computes it.

        g  += weight_decay * w
        ms += (1 - decay) * (g^2 - ms)              the mean square starts at 1
        mom = momentum * mom + lr * g / sqrt(ms + eps)   eps inside the root, lr inside the buffer
        w  -= mom

    torch.optim.RMSprop starts at 0, adds eps outside the root and applies the rate after the
    momentum: with eps = 1.0, the recipe of Inception, it is another optimizer.
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
        defaults = {
            "lr": lr,
            "decay": decay,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient; gradients stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            for p in params:
                if p not in self.state or not self.state[p]:
                    self.state[p]["mean_square"] = torch.ones_like(p)
                    self.state[p]["momentum"] = torch.zeros_like(p)
            squares = [self.state[p]["mean_square"] for p in params]
            moments = [self.state[p]["momentum"] for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_addcdiv_(moments, grads, roots, value=group["lr"])
            torch._foreach_sub_(params, moments)
        return loss


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
    """The optimizer of a recipe, in two groups: weights of convolutions and fully connected layers
    decay, batch norm and biases do not (TensorFlow's release; gluon's recipe). Frozen ones are left
    out.

    `sgd` is Nesterov's; `adamw` takes torch's own moments and eps. Raises ModelError for another
    name.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    is_fused = all(p.device.type in FUSED_ON for p in trained)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if name == "rmsprop_tf":
        return RMSpropTF(groups, lr=lr, decay=decay, momentum=momentum, eps=eps)
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=is_fused
        )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=is_fused)
    raise unknown_name("optim.name", name, OPTIMIZER_NAMES)
