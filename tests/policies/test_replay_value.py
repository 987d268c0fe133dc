"""The replay value loss: what reality paid teaches the critic, and nobody else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from actor_critic_helpers import FEATURES, expect_gradient, gradients, policy
from torch import Tensor

from worldmodel.distributions import TwoHot
from worldmodel.policies.actor_critic import ActorCritic


def slow_replay_loss(made: ActorCritic, features: Tensor, reward: Tensor, first: Tensor, terminal: Tensor) -> Tensor:
    """Step by step, each episode for itself; discount 0.9."""
    c, (steps, width) = made.config, reward.shape
    value = TwoHot(made.critic(features)).mean().detach()
    slow = TwoHot(made.slow_critic(features)).mean().detach()
    losses = []
    for b in range(width):
        bounds = [0, *(t for t in range(1, steps) if first[t, b]), steps]
        for begin, end in pairwise(bounds):
            following = value[end - 1, b]
            for t in reversed(range(begin, end - 1)):
                alive = 0.0 if terminal[t + 1, b] else 0.9
                following = reward[t + 1, b] + alive * ((1 - c.lam) * value[t + 1, b] + c.lam * following)
                guess = TwoHot(made.critic(features[t, b]))
                losses.append(guess.loss(following) + c.slow_scale * guess.loss(slow[t, b]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", range(4))
def test_replayed_rewards_teach_the_critic_alone(seed: int) -> None:
    torch.manual_seed(seed)
    made = policy(slow_scale=0.7, discount=0.5)
    features, reward = torch.randn(7, 5, FEATURES, requires_grad=True), torch.randn(7, 5)
    first, terminal = torch.rand(7, 5) < 0.3, torch.rand(7, 5) < 0.3
    loss = made.replay_loss(features, reward, first, terminal, 0.9)
    expected = slow_replay_loss(made, features.detach(), reward, first, terminal)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    actual, wanted = gradients(loss, made), gradients(expected, made)
    for name, grad in actual.items():
        if name.startswith("critic"):
            expect_gradient(grad, wanted[name])
        else:
            assert grad is None
    assert torch.autograd.grad(
        made.replay_loss(features, reward, first, terminal, 0.9), features, allow_unused=True
    ) == (None,)


@pytest.mark.parametrize("seed", range(4))
def test_what_came_after_the_sequences_stands_in_for_the_last_value(seed: int) -> None:
    """One episode in two pieces teaches as the same episode in one, where lambda is 1."""
    torch.manual_seed(seed)
    made = policy(slow_scale=0.7, lam=1.0)
    features, reward = torch.randn(7, 5, FEATURES), torch.randn(7, 5)
    terminal = torch.zeros(7, 5, dtype=torch.bool)
    terminal[-1] = torch.rand(5) < 0.5
    first = torch.zeros_like(terminal)
    after = (reward[4:], torch.full((5,), 3), features[-1], terminal[-1])
    loss = made.replay_loss(features[:4], reward[:4], first[:4], terminal[:4], 0.9, after)
    value, slow = (TwoHot(net(features)).mean().detach() for net in (made.critic, made.slow_critic))
    wanted, following = [], value[-1] * ~terminal[-1]
    for t in reversed(range(6)):
        following = reward[t + 1] + 0.9 * following
        if t < 3:
            guess = TwoHot(made.critic(features[t]))
            wanted.append(guess.loss(following) + 0.7 * guess.loss(slow[t]))
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)


def test_without_steps_after_them_the_sequences_teach_as_ever() -> None:
    made, none = policy(), torch.zeros(5, dtype=torch.bool)
    features, reward, flags = torch.randn(7, 5, FEATURES), torch.randn(7, 5), torch.zeros(7, 5, dtype=torch.bool)
    after = (torch.zeros(3, 5), torch.zeros(5, dtype=torch.long), torch.zeros(5, FEATURES), none)
    with_none, without = (made.replay_loss(features, reward, flags, flags, 0.9, given) for given in (after, None))
    assert with_none == without


def test_sequences_in_which_nothing_follows_teach_nothing() -> None:
    made, ends = policy(), torch.ones(4, 3, dtype=torch.bool)
    assert made.replay_loss(torch.randn(4, 3, FEATURES), torch.randn(4, 3), ends, ~ends, 0.9) == 0
