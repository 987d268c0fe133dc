"""A dream at another temperature: the same world, its latents sampled from p^(1 / temperature)."""

from __future__ import annotations

import pytest
import torch
from tiny import ACTIONS, action, expect_equal, observation, state_of, world

from worldmodel.distributions import OneHot
from worldmodel.errors import UsageError
from worldmodel.models.base import WorldModel, dream
from worldmodel.models.wrappers import Temperature


def test_logits_are_divided_by_the_temperature() -> None:
    made = OneHot(torch.tensor([[0.5, 0.25, 0.25]]))
    expect_equal(made.tempered(0.5).probs, torch.tensor([[4.0, 1, 1]]) / 6)
    expect_equal(made.tempered(2.0).probs, torch.tensor([[2**0.5, 1, 1]]) / (2 + 2**0.5))
    expect_equal(made.tempered(0.01).probs, torch.tensor([[1.0, 0, 0]]))
    assert made.tempered(1) is made is made.tempered(1.0)


def test_at_one_it_is_the_world_itself() -> None:
    made = world("both")
    start, plan = state_of(made, 4), action(False, 5, 4)
    dreams = []
    for one in (made, made.tempered(1.0)):
        torch.manual_seed(3)
        dreams.append(dream(one, start, plan, 5))
    assert all(torch.equal(a, b) for a, b in zip(*dreams, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_latents_come_as_often_as_the_temperature_says(temperature: float) -> None:
    made, many = world("vector"), 20_000
    start, taken = state_of(made, 1).expand(many, -1), action(False, 1).expand(many, -1)
    with torch.no_grad():
        dreamed = made.tempered(temperature).imagine(start, taken).state
        probs = made._categoricals(made.prior(dreamed[:1, :16]))[0]
    expected = probs ** (1 / temperature)
    seen = dreamed[:, 16:].unflatten(1, (3, 4)).mean(0)
    expect_equal(seen, expected / expected.sum(-1, keepdim=True), 0.015)
    assert probs.std() > 0.03  # so that the temperatures differ


def test_only_dreams_are_tempered() -> None:
    """What is filtered, decoded and felt stays as it is."""
    made = world("both")
    cold = made.tempered(0.2)
    obs, state, first = observation("both", 4), state_of(made, 4), torch.zeros(4, dtype=torch.bool)
    seen = []
    for one in (made, cold):
        torch.manual_seed(1)
        seen.append(one.observe(state, torch.zeros(4, ACTIONS), obs, first))
    assert torch.equal(*seen) and torch.equal(cold.decode(state), made.decode(state))
    assert torch.equal(cold.features(state), made.features(state)) and torch.equal(cold.initial(2), made.initial(2))
    assert all(torch.equal(a, b) for a, b in zip(cold.outcome(state), made.outcome(state), strict=True))
    assert cold.feature_bound == made.feature_bound == 1 and cold.temperature == 0.2


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_positive_number(bad: float) -> None:
    with pytest.raises(UsageError, match="temperature must be a positive number"):
        Temperature(world("vector"), bad)


def test_a_world_that_has_no_temperature_says_so() -> None:
    class Plain(WorldModel):
        def advance(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return state

    with pytest.raises(UsageError, match=r"Plain cannot be sampled.*no `advance\(state, action, temperature\)`"):
        Plain().tempered(0.5)
    with pytest.raises(UsageError, match="Temperature cannot be sampled"):
        world("vector").tempered(0.5).tempered(0.5)
