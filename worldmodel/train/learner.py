"""What all learners share: a world taught by every batch, averaged weights, and a place for the policy's lesson.

repeat
    world:     maximise the evidence of replayed sequences              models/
    dream:     the policy's lesson                                      dreamer.py, world_models.py
    both:      one optimiser step, one step of the averages
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from worldmodel.agent import Agent, build
from worldmodel.config import Config
from worldmodel.envs import Spaces
from worldmodel.errors import NumericalError
from worldmodel.models.base import Batch
from worldmodel.optim import Average, LaProp, decayed
from worldmodel.policies.base import Policy
from worldmodel.train.allocator import keep_memory

Timed = Callable[[str], AbstractContextManager[Any]]


class Learner:
    """World model, policy and their optimiser, taught one batch at a time.

    Args:
        config: the run's; `precision` resolved. spaces: of the environment. device: where to compute.
        clock: `clock("world")` and `clock("dream")` are context managers that time the two halves of an update.
    """

    def __init__(self, config: Config, spaces: Spaces, device: str, clock: Timed):
        keep_memory()
        self.config, self.clock = config, clock
        precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.agent = build(config, spaces, precision).to(device)
        temperature = config.policy.temperature
        self.dreamed = self.agent.world if temperature == 1 else self.agent.world.tempered(temperature)
        self.averaged = build(config, spaces, precision).to(device)
        modules = {"world": self.agent.world, "policy": self.agent.policy}
        named = {f"{m}.{name}": p for m in modules for name, p in modules[m].named_parameters() if p.requires_grad}
        o = config.optim
        settings = {"world": {"lr": o.world_lr, "weight_decay": o.world_weight_decay}, "policy": {"lr": o.policy_lr}}
        groups = [
            {"params": [p for name, p in named.items() if name.startswith(f"{module}.")]} | settings[module]
            for module in modules
        ]
        self.optimizer = LaProp.of(groups, 0.0, o)
        self.names = list(named)
        self.average = Average(modules, o.average)
        self.updates = 0

    @property
    def learning(self) -> str:
        """What the policy learns from, for the card of an agent."""
        raise NotImplementedError

    def update(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], Tensor]:
        """One update of world and policy from one batch: (metrics name -> (), posterior states (T, B, S)).

        `progress` (0 to 1) of the run decides learning rates, discount and entropy bonus, where they move along.

        Raises NumericalError naming the loss or the parameter that is not finite; nothing is changed then.
        """
        o = self.config.optim
        rates = {
            "world": decayed(progress, o.world_decay or o.decay, o.final),
            "policy": decayed(progress, o.decay, o.final) * self._policy_rate(progress),
        }
        self.optimizer.zero_grad()
        with self.clock("world"):
            loss, metrics, states = self.agent.world.loss(batch)
            check_finite(metrics)
            loss.backward()
        with self.clock("dream"):
            before = [(value, value.clone()) for value in self._moved_by_lessons()]
            try:
                metrics |= self._teach_policy(batch, states, progress)
                check_finite(metrics)
                self._check_gradients()
            except NumericalError:
                for value, was in before:  # these have moved already; everything else has not
                    value.copy_(was)
                raise
            self.optimizer.step(rates["world"], rates["policy"])
            self._stepped()
            self.average.update()
        self.updates += 1
        return metrics | {f"optim/{module}_rate": torch.tensor(rate) for module, rate in rates.items()}, states

    def _policy_rate(self, progress: float) -> float:
        """What the policy's learning rate is multiplied by besides."""
        return 1.0

    def _teach_policy(self, batch: Batch, states: Tensor, progress: float) -> dict[str, Tensor]:
        """The policy's lesson: leaves gradients for the optimiser, or none; returns metrics."""
        raise NotImplementedError

    def _moved_by_lessons(self) -> list[Tensor]:
        """What `_teach_policy` changes by itself."""
        return []

    def _stepped(self) -> None:
        """The optimiser has made a step."""

    def now_and_then(self) -> float:
        """Seconds of an average update that a timed one did not show, because what takes them is not always due."""
        return 0.0

    def averaged_agent(self) -> Agent:
        """The agent with averaged weights: the one that is judged and shipped. One object, refreshed by every call."""
        self.averaged.load_weights(self.average.weights if self.config.optim.average else self.agent.weights())
        return self.averaged

    def adopt(self, policy: Policy) -> None:
        """Goes on with the weights of `policy`, of the same shapes: live and averaged ones; what the optimiser
        remembered of the old ones is forgotten."""
        self.agent.policy.load_state_dict(policy.state_dict())
        for name, value in policy.state_dict().items():
            self.average.weights[f"policy.{name}"].copy_(value)
        for p in self.agent.policy.parameters():
            for memory in self.optimizer.state.get(p, {}).values():
                memory.zero_()

    def _check_gradients(self) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        taught = [(name, p.grad) for name, p in zip(self.names, params, strict=True) if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([grad for _, grad in taught]))
        if not torch.isfinite(norms).all():
            bad = [name for (name, _), norm in zip(taught, norms, strict=True) if not torch.isfinite(norm)]
            raise NumericalError(
                f"gradient of {bad[0]} not finite at update {self.updates}, and of {len(bad) - 1} more"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learning changes: live and averaged weights, optimiser moments, by name."""
        out = {f"live.{name}": value for name, value in self.agent.weights().items()}
        out |= {f"average.{name}": value for name, value in self.average.weights.items()}
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, p in zip(self.names, params, strict=True):
            out |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        return out

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors`, after `updates` updates."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.updates = self.average.updates = updates


def check_finite(metrics: dict[str, Tensor]) -> None:
    """Raises NumericalError naming what is not finite."""
    bad = [name for name, value in metrics.items() if not bool(torch.isfinite(value))]
    if bad:
        raise NumericalError(
            f"{', '.join(bad)} not finite: look at metrics.jsonl; a lower --optim.world-lr or --precision float32 helps"
        )


def learner(config: Config, spaces: Spaces, device: str, clock: Timed) -> Learner:
    """The learner of `config.policy.kind`; arguments as of `Learner`."""
    from worldmodel.train.dreamer import Dreamer
    from worldmodel.train.world_models import WorldModels

    kinds = {"actor-critic": Dreamer, "evolution": WorldModels}
    return kinds[config.policy.kind](config, spaces, device, clock)
