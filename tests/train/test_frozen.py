"""A policy learned in the dreams of a world that stays as it is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ACTIONS, SEEN, agent, config, expect_equal, state_of
from torch import Tensor

import worldmodel.train.frozen as module
from worldmodel.agent import Agent
from worldmodel.config import Config
from worldmodel.envs import Spaces
from worldmodel.errors import UsageError
from worldmodel.models.base import WorldModel, dream
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.policies.base import Policy
from worldmodel.policies.evolution import Controller
from worldmodel.train.frozen import learn_policy, policy_in

SPACES = Spaces({"vector": (1,)}, False, 1)


class Slope(WorldModel):
    """State (height, what a unit of it pays): the action moves the height; a temperature turns the slope around."""

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, 2)

    def advance(self, state: Tensor, action: Tensor, temperature: float = 1.0) -> Tensor:
        sign = 1.0 if temperature == 1 else -1.0
        return torch.cat([state[:, :1] + sign * action.clamp(-1, 1), state[:, 1:]], -1)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[..., 0] * state[..., 1], torch.ones_like(state[..., 0])

    def features(self, state: Tensor) -> Tensor:
        return state


STARTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])


def sloping(**policy: Any) -> Config:
    return config(policy={"units": 16, "starts": 32, "horizon": 5, **policy}, optim={"policy_lr": 3e-3, "warmup": 10})


def climbed(policy: Policy, world: WorldModel) -> float:
    with torch.no_grad():
        return float(dream(world, STARTS, lambda seen: policy.act(seen, False), 5).rewards.sum(0).mean())


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_learns_what_pays_in_dreams_of_that_temperature(gradient: str, temperature: float) -> None:
    """The best is 15; half of it, the other way, at the other temperature."""
    world, c = Slope(), sloping(gradient=gradient, temperature=temperature)
    learned = learn_policy(world, SPACES, STARTS, c, 150, seed=1)
    other = world.tempered(2.0)
    own, opposite = (world, other) if temperature == 1 else (other, world)
    assert abs(climbed(policy_in(world, SPACES, c, 1), own)) < 3
    assert climbed(learned, own) > 10 and climbed(learned, opposite) < -10


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_so_does_a_controller_that_evolves(temperature: float) -> None:
    told, world = [], Slope()
    c = config(policy={"kind": "evolution", "temperature": temperature}, evolution={"starts": 3, "horizon": 5})

    def evolved(seed: int = 1, generations: int = 20) -> Controller:
        return learn_policy(world, SPACES, STARTS, c, generations, seed, lambda n, metrics: told.append((n, metrics)))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = evolved()
    assert isinstance(one, Controller) and torch.equal(torch.get_rng_state(), before)
    own, opposite = (world, world.tempered(2.0)) if temperature == 1 else (world.tempered(2.0), world)
    assert climbed(one, own) > 10 and climbed(one, opposite) < -10
    assert [n for n, _ in told] == list(range(1, 21))
    assert told[-1][1]["evolution/return"] > told[0][1]["evolution/return"] + 5
    assert same(one, evolved()) and not same(one, evolved(seed=2)) and not evolved(generations=0).vector().any()


def student(**changes: Any) -> tuple[Agent, Tensor]:
    """A tiny agent, and states to start from."""
    torch.manual_seed(0)
    made = agent(**changes)
    return made, state_of(made.world, 50)


def learn(made: Agent, starts: Tensor, updates: int = 3, seed: int = 1) -> ActorCritic:
    return learn_policy(made.world, made.spaces, starts, made.config, updates, seed)


def same(a: Policy, b: Policy) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_world_and_starts_are_only_read(gradient: str, frozen: bool) -> None:
    made, starts = student(policy={"gradient": gradient, "temperature": 1.3})
    made.world.requires_grad_(not frozen)
    before, kept = made.version, starts.clone()
    learn(made, starts)
    assert made.version == before and torch.equal(starts, kept)
    assert all(p.grad is None for p in made.world.parameters())


def test_a_seed_is_a_policy_and_no_global_stream_is_drawn_from() -> None:
    made, starts = student()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    one = learn(made, starts)
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(2)
    assert same(one, learn(made, starts)) and not same(one, learn(made, starts, seed=2))
    assert same(learn(made, starts, updates=0), policy_in(made.world, made.spaces, made.config, 1))
    assert not same(one, policy_in(made.world, made.spaces, made.config, 1))


def test_weights_are_averaged_as_in_training() -> None:
    made, starts = student(optim={"average": 0.997})
    live, _ = student(optim={"average": 0.0})
    first = policy_in(made.world, made.spaces, made.config, 1).state_dict()
    last = learn(live, starts, 1).state_dict()
    for name, value in learn(made, starts, 1).state_dict().items():  # the average's first decay is 1 / (1 + 10)
        expect_equal(value, first[name] / 11 + last[name] * 10 / 11, 1e-5)


def test_the_slow_critic_follows() -> None:
    made, starts = student(optim={"average": 0.0, "policy_lr": 0.1})
    first = policy_in(made.world, made.spaces, made.config, 1).slow_critic.state_dict()
    last = learn(made, starts, updates=1)
    for name, value in last.critic.state_dict().items():
        expect_equal(last.slow_critic.state_dict()[name], 0.98 * first[name] + 0.02 * value, 1e-6)
    moved = [(value - first[name]).abs().max() for name, value in last.critic.state_dict().items()]
    assert max(moved) > 0.01, "the head, which is zero at first"


def test_dreams_begin_in_the_same_states_whatever_is_drawn_within_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], module.learn_in_dream
    monkeypatch.setattr(module, "learn_in_dream", lambda *args: seen.append(args[2]) or real(*args))
    for horizon in (2, 5):
        learn(*student(policy={"horizon": horizon, "starts": 6}))
    assert torch.equal(torch.stack(seen[:3]), torch.stack(seen[3:]))


def test_rate_and_discount_move_along_with_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    made, starts = student(policy={"discount": 0.9, "final_discount": 0.975, "starts": 7},
                           optim={"decay": 0.5, "world_decay": 1.0, "final": 0.0})  # fmt: skip
    seen, rates, told = [], [], []
    real, step = module.learn_in_dream, module.LaProp.step
    monkeypatch.setattr(module, "learn_in_dream", lambda *args: seen.append(args) or real(*args))
    monkeypatch.setattr(module.LaProp, "step", lambda self, rate: rates.append(rate) or step(self, rate))
    learn_policy(made.world, made.spaces, starts, made.config, 4, 1, lambda *args: told.append(args))
    assert rates == [1, 1, 1, 0.5]
    assert [args[3] for args in seen] == [0, 0.25, 0.5, 0.75]
    assert [1 / (1 - float(metrics["policy/discount"])) for _, metrics in told] == pytest.approx(
        [10 * 4 ** (i / 4) for i in range(4)], rel=1e-4
    )
    assert [update for update, _ in told] == [1, 2, 3, 4] and "policy/entropy" in told[0][1]
    drawn = torch.stack([args[2] for args in seen])
    known = {tuple(row) for row in starts.tolist()}
    assert drawn.shape == (4, 7, made.world.width) and {tuple(row) for row in drawn.flatten(0, 1).tolist()} <= known
    assert not torch.equal(drawn[0], drawn[1])


def test_as_many_dreams_as_a_batch_holds_where_a_run_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made, starts = student(policy={"starts": 0})
    seen, real = [], module.learn_in_dream
    monkeypatch.setattr(module, "learn_in_dream", lambda *args: seen.append(args[2]) or real(*args))
    learn(made, starts.half(), 1)
    assert len(seen[0]) == made.config.replay.batch * made.config.replay.length
    assert seen[0].dtype == torch.float32


def test_mistakes_are_named() -> None:
    made, starts = student()
    with pytest.raises(UsageError, match="no states to start dreams from"):
        learn(made, starts[:0])
    with pytest.raises(UsageError, match="temperature must be a positive number"):
        learn(*student(policy={"temperature": 0.0}))


def test_a_policy_fits_its_world_and_precision() -> None:
    made = policy_in(agent(discrete=True).world, Spaces(SEEN["both"], True, ACTIONS), config(precision="bfloat16"), 3)
    assert made.discrete and made.precision == torch.bfloat16 and made.actor[-1].out_features == ACTIONS
