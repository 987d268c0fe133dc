"""What the tests of the actor-critic share: a small one, a dream, and its gradients."""

from __future__ import annotations

import dataclasses

import torch
from tiny import ACTIONS, POLICY, action, shake
from torch import Tensor

from worldmodel.models.base import Dream
from worldmodel.policies.actor_critic import ActorCritic

FEATURES = 6


def policy(discrete: bool = False, **overrides) -> ActorCritic:
    """Random in every weight; the slow critic differs from the critic."""
    return shake(ActorCritic(FEATURES, ACTIONS, discrete, dataclasses.replace(POLICY, **overrides)))


def imagined(discrete: bool, horizon: int = 4, width: int = 5, reward: float = 1.0) -> tuple[Dream, Tensor]:
    """A dream with a terminal state in it, and its features."""
    conts = torch.rand(horizon, width)
    conts[1, 0] = 0.0
    states = torch.randn(horizon + 1, width, FEATURES)
    return Dream(states, action(discrete, horizon, width), reward * torch.randn(horizon, width), conts), states.clone()


def gradients(loss: Tensor, made: ActorCritic) -> dict[str, Tensor | None]:
    names, params = zip(*[(n, p) for n, p in made.named_parameters() if p.requires_grad], strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params, allow_unused=True), strict=True))


def expect_gradient(actual: Tensor, expected: Tensor) -> None:
    """Alike to a thousandth of its length."""
    assert actual.shape == expected.shape and expected.norm() > 0
    assert (actual - expected).norm() <= 1e-3 * expected.norm()
