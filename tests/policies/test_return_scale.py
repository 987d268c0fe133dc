"""The scale of returns, which divides advantages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from actor_critic_helpers import imagined, policy

from worldmodel.policies.actor_critic import ReturnScale


def test_return_scale_against_numpy() -> None:
    scale, low, high = ReturnScale(0.1), 0.0, 0.0
    for step in range(30):
        returns = torch.randn(7, 13) * 10 ** (step / 10) + 3 * step
        scale.update(returns)
        fifth, top = np.percentile(returns.numpy().astype(np.float64), [5, 95])
        low, high = 0.9 * low + 0.1 * fifth, 0.9 * high + 0.1 * top
        assert scale.low.item() == pytest.approx(low, rel=1e-4)
        assert scale.high.item() == pytest.approx(high, rel=1e-4)
        assert scale.value().item() == pytest.approx(max(1.0, high - low), rel=1e-4)
    assert scale.value() > 50


@pytest.mark.parametrize("count", [1, 2, 20, 21])
def test_percentiles_of_few_returns(count: int) -> None:
    scale, returns = ReturnScale(1.0), torch.randn(count)
    scale.update(returns)
    expected = np.percentile(returns.numpy(), [5, 95])
    assert [scale.low.item(), scale.high.item()] == pytest.approx(expected.tolist(), abs=1e-6)


def test_return_scale_never_enlarges_small_returns() -> None:
    scale = ReturnScale(1.0)
    scale.update(torch.linspace(0, 0.1, 50))
    assert scale.value() == 1
    scale.update(torch.linspace(0, 100, 101))
    assert scale.value().item() == pytest.approx(90)


def test_return_scale_has_a_limit_where_one_is_asked_for() -> None:
    returns = torch.linspace(0, 1000, 101)
    for limit, expected in ((0.0, 900.0), (100.0, 100.0), (2000.0, 900.0)):
        made = policy(max_scale=limit, scale_rate=1.0)
        made.scale.update(returns)
        assert made.scale.value().item() == pytest.approx(expected)
        assert made.scale.high.item() == pytest.approx(950)  # what moves is not what is limited


def test_return_scale_is_saved_with_the_weights() -> None:
    assert {"scale.low", "scale.high"} <= set(policy().state_dict())


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_return_scale_divides_the_advantage(gradient: str) -> None:
    """torchrl#4125: a scale that is computed, logged and never used."""
    losses = []
    for spread in (1.0, 50.0):
        torch.manual_seed(3)
        made = policy(gradient=gradient, entropy=0.0, scale_rate=0.0)
        made.scale.high.fill_(spread)
        _, metrics = made.loss(*imagined(False, reward=30.0))
        losses.append((metrics["loss/actor"].item(), metrics["policy/advantage_std"].item()))
        assert metrics["policy/return_scale"].item() == spread
    assert losses[0] == pytest.approx([50 * x for x in losses[1]], rel=1e-4)
    assert abs(losses[0][0]) > 0.1


def test_return_scale_moves_with_every_loss_and_is_read_afterwards() -> None:
    made = policy(scale_rate=1.0)
    _, metrics = made.loss(*imagined(False, reward=100.0))
    assert made.scale.high > made.scale.low and metrics["policy/return_scale"] > 50
    assert metrics["policy/return_scale"] == made.scale.value()
