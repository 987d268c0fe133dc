"""A world with an ensemble's answer to how unsure it is; all other answers are its own (tests/contract/ as well)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import ACTIONS, action, agent, expect_equal, state_of, world

from worldmodel.agent import Agent
from worldmodel.envs.dream import DreamEnv
from worldmodel.envs.starts import Starts
from worldmodel.errors import UsageError
from worldmodel.models.base import WorldModel, dream
from worldmodel.models.ensemble import Ensemble
from worldmodel.models.wrappers import Unsure


def unsure(made: WorldModel) -> Unsure:
    ensemble = Ensemble(made.features(made.initial(1)).shape[-1], ACTIONS, heads=3, units=8)
    return Unsure(made, ensemble.requires_grad_(False))


def test_disagreement_is_the_ensembles_at_the_worlds_features() -> None:
    made = unsure(world("both"))
    states, taken = state_of(made.world, 6), action(False, 6)
    found = made.disagreement(states, taken)
    assert found.shape == (6,) and (found > 0).all() and found.dtype == torch.float32
    expect_equal(found, made.ensemble(made.world.features(states), taken).var(0, correction=0).mean(-1))
    assert torch.equal(found, made.tempered(0.5).disagreement(states, taken))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_dreams_are_those_of_the_world(temperature: float) -> None:
    plain = world("both")
    start, plan, dreams = state_of(plain, 4), action(False, 5, 4), []
    for one in (plain, unsure(plain)):
        torch.manual_seed(3)
        dreams.append(dream(one if temperature == 1 else one.tempered(temperature), start, plan, 5))
    together, apart = dreams  # heads of all steps at once or step by step: on some CPUs the last bit differs
    assert torch.equal(apart.states, together.states) and torch.equal(apart.actions, together.actions)
    expect_equal(apart.rewards, together.rewards)
    expect_equal(apart.conts, together.conts)
    assert unsure(plain).feature_bound == plain.feature_bound == 1


def test_what_the_world_cannot_do_it_still_cannot() -> None:
    class Plain(WorldModel):
        def features(self, state: torch.Tensor) -> torch.Tensor:
            return state

        def initial(self, batch: int) -> torch.Tensor:
            return torch.zeros(batch, 3)

    with pytest.raises(UsageError, match="Plain cannot be sampled"):
        unsure(Plain()).tempered(0.5)


def test_an_agent_in_it_is_saved_as_the_agent_it_was(tmp_path: Path) -> None:
    plain = agent()
    doubting = plain.fork()
    doubting.world = unsure(plain.world)
    assert doubting.version == plain.version
    doubting.save(tmp_path / "agent")
    assert Agent.load(tmp_path / "agent").version == plain.version
    other = agent()
    assert other.version != plain.version
    doubting.world.load_state_dict(other.world.state_dict())
    doubting.policy.load_state_dict(other.policy.state_dict())
    assert plain.version == doubting.version == other.version, "the same world, not a copy"


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dreams_of_it_may_cost(temperature: float) -> None:
    doubting = agent("vector")
    doubting.world = unsure(doubting.world)
    doubting.starts = Starts.of([(state, 0, i) for i, state in enumerate(state_of(doubting.world.world, 5))])
    env = DreamEnv(doubting, obs="latent", penalty=2.0, cont="ignore", temperature=temperature)
    env.reset(seed=0, options={"start": 3})
    _, reward, _, _, info = env.step(torch.zeros(ACTIONS).numpy())
    expected = doubting.world.disagreement(doubting.starts.states[3:4].float(), torch.zeros(1, ACTIONS)).item()
    assert info["disagreement"] == pytest.approx(expected, rel=1e-4) and expected > 0
    assert reward == pytest.approx(info["raw_reward"] - 2.0 * info["disagreement"])
