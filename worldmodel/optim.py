"""DreamerV3's optimiser, adaptive gradient clipping and LaProp (RMS scaling before momentum), with decoupled weight
decay; averaged weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.config import OptimConfig


class LaProp:
    """AGC + LaProp with linear warm-up, in a handful of fused calls for all tensors (Ziyin et al., arXiv 2002.04839).

        g <- g / max(1, |g| / (agc max(1e-3, |w|)))       per tensor
        v <- b2 v + (1 - b2) g^2;   u = g / (sqrt(v / (1 - b2^t)) + eps)
        s = rate lr min(1, t / warmup)
        m <- b1 m + (1 - b1) u;     w <- (1 - s weight_decay) w - s m / (1 - b1^t)

    Args:
        params: parameters, or groups {"params": [...]} that may have an `lr` and a `weight_decay` of their own.
        weight_decay: decoupled (Loshchilov and Hutter, arXiv 1711.05101) of all weights but vectors, which are
            biases and gains.

    Not a `torch.optim.Optimizer`: that base class imports the whole compiler, seconds of every start.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        agc: float = 0.3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-20,
        warmup: int = 1000,
        weight_decay: float = 0.0,
    ):
        groups = list(params)
        if groups and not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        shared = dict(
            lr=lr, agc=agc, beta1=beta1, beta2=beta2, eps=eps, warmup=warmup, weight_decay=weight_decay
        )  # fmt: skip
        self.param_groups = [shared | group | {"params": list(group["params"])} for group in groups]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.int64),
                    "m": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "v": torch.zeros_like(p, memory_format=torch.preserve_format),
                }

    @classmethod
    def of(cls, params: Iterable[Any], lr: float, config: OptimConfig) -> LaProp:
        """As `config` has it, but for the learning rate `lr`."""
        c = config
        return cls(params, lr, agc=c.agc, beta1=c.beta1, beta2=c.beta2, eps=c.eps, warmup=c.warmup)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, *rates: float) -> None:
        """One update of every parameter that has a gradient; `rates` multiply the learning rates: none, or one for
        every group."""
        for group, rate in zip(self.param_groups, rates or [1.0] * len(self.param_groups), strict=True):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = clip_to_weights([p.grad for p in params], params, group["agc"])
            states = [self.state[p] for p in params]
            for state in states:
                state["step"] += 1
            counts = [int(state["step"]) for state in states]  # a tensor without gradients does not count
            b1, b2 = group["beta1"], group["beta2"]
            m, v = [s["m"] for s in states], [s["v"] for s in states]
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            scale = torch._foreach_div(v, [1 - b2**t for t in counts])
            torch._foreach_sqrt_(scale)
            torch._foreach_add_(scale, group["eps"])
            torch._foreach_div_(grads, scale)
            torch._foreach_lerp_(m, grads, 1 - b1)
            warm = [min(1.0, t / max(1, group["warmup"])) for t in counts]
            sizes = [rate * group["lr"] * share for share in warm]
            if decay := group["weight_decay"]:
                torch._foreach_mul_(params, [1 - s * decay * (p.dim() > 1) for s, p in zip(sizes, params, strict=True)])
            steps = [-size / (1 - b1**t) for size, t in zip(sizes, counts, strict=True)]
            torch._foreach_add_(params, torch._foreach_mul(m, steps))


def clip_to_weights(grads: list[Tensor], params: list[Tensor], agc: float) -> list[Tensor]:
    """Gradients scaled so that no tensor's norm exceeds `agc` times its weight's (at least 1e-3): new tensors."""
    bound = agc * torch.stack(torch._foreach_norm(params)).clamp(min=1e-3)
    scale = 1 / torch.clamp(torch.stack(torch._foreach_norm(grads)) / bound, min=1.0)
    return list(torch._foreach_mul(grads, list(scale.unbind())))


def decayed(progress: float, share: float, final: float) -> float:
    """Factor of the learning rates at `progress` (0 to 1) of a run: 1, and over its last `share` linearly to `final`.

    A `share` of 0 never decays; a run beyond its budget stays at `final`.
    """
    if progress <= 1 - share or not share:
        return 1.0
    return 1 - (1 - final) * min(1.0, (progress - 1 + share) / share)


class Average:
    """Exponential moving average of the weights of some modules: a less noisy agent than the last iterate.

    The average is warmed up, decay_t = min(decay, t / (t + 10)), so that the random start is soon forgotten.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float):
        self.decay, self.updates = decay, 0
        self._live = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.state_dict().items()}
        self.weights = {key: p.clone() for key, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average one update towards the live weights, which the modules must have changed in place."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        torch._foreach_lerp_(list(self.weights.values()), list(self._live.values()), 1 - decay)

    def into(self, name: str, module: nn.Module) -> nn.Module:
        """`module`, with the averaged weights of the module called `name`."""
        mine = f"{name}."
        weights = {key.removeprefix(mine): value for key, value in self.weights.items() if key.startswith(mine)}
        module.load_state_dict(weights)
        return module
