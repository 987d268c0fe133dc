"""A client nobody here wrote: stable-baselines3 accepts the dream, and its PPO learns in it."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from dream_helpers import SPACES, Counter, counted, dreamer, same
from tiny import config, shake

import worldmodel.envs  # noqa: F401  (registers the dream)
from worldmodel.agent import build
from worldmodel.envs import Spaces
from worldmodel.envs.dream import DreamEnv
from worldmodel.envs.starts import Starts
from worldmodel.errors import UsageError

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from worldmodel.envs.dream_sb3 import DreamVecEnv


@pytest.mark.parametrize("obs", ["pixels", "latent", "both"])
def test_its_checker_has_nothing_to_say(obs: str) -> None:
    """With pictures of a size that its CNN takes."""
    world = {"image_size": 40}
    made = build(config(env=world), Spaces({"image": (48, 48, 3)}, False, 2), torch.float32)
    shake(made.world)
    first = {"image": torch.randint(0, 256, (3, 48, 48, 3), dtype=torch.uint8)}
    with torch.no_grad():
        states = made.world.observe(made.world.initial(3), torch.zeros(3, 2), first, torch.ones(3, dtype=torch.bool))
    made.starts = Starts.of([(state, 0, 0) for state in states])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("worldmodel/Dream-v0", checkpoint=made, obs=obs, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("obs", ["latent", "both"])
def test_behaves_as_single_dreams_in_its_own_vector(obs: str) -> None:
    made, n = dreamer("image"), 5
    ours = DreamVecEnv(made, n, obs=obs, horizon=3)
    theirs = DummyVecEnv([lambda: DreamEnv(made, obs=obs, horizon=3)] * n)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    for env in (ours, theirs):
        env.seed(7)
        env.set_options({"start": 2})
    assert plain(ours.reset()) == plain(theirs.reset()) and ours.reset_infos == theirs.reset_infos
    generator, ended = np.random.default_rng(0), 0
    for _ in range(8):
        actions = generator.uniform(-1, 1, (n, 3)).astype(np.float32)
        (a, *mine), (b, *other) = ours.step(actions), theirs.step(actions)
        assert plain(a) == plain(b) and same(mine[:2], other[:2])
        for x, y in zip(mine[2], other[2], strict=True):
            assert plain(x.pop("terminal_observation", None)) == plain(y.pop("terminal_observation", None)) and x == y
        assert ours.reset_infos == theirs.reset_infos
        ended += int(mine[1].sum())
    assert ended > 5


def plain(observation: Any) -> Any:
    """As nested lists: whether dicts are ordered does not matter."""
    if isinstance(observation, dict):
        return {name: plain(value) for name, value in observation.items()}
    return None if observation is None else (observation.dtype.name, observation.tolist())


def test_its_ppo_learns_in_the_dream() -> None:
    """The reward of a `Counter` is the sum of the action: 3 a step is the most, 0 what an untrained policy gets."""

    class Paid(Counter):
        def imagine(self, state: torch.Tensor, action: torch.Tensor) -> Any:
            step = super().imagine(state, action)
            return step._replace(reward=action.sum(-1), state=step.state / step.state.abs().clamp(min=1))

    dreams = VecMonitor(DreamVecEnv(Paid(), 16, spaces=SPACES, starts=counted(), obs="latent", rows=16, horizon=8))
    ppo = PPO("MlpPolicy", dreams, n_steps=32, batch_size=128, learning_rate=3e-3, seed=0, device="cpu",
              policy_kwargs={"net_arch": [16]})  # fmt: skip
    ppo.learn(4096)
    returns = [episode["r"] for episode in ppo.ep_info_buffer]
    assert np.mean(returns) > 12 and max(episode["l"] for episode in ppo.ep_info_buffer) == 8


def test_its_ppo_runs_in_the_dream_of_an_agent() -> None:
    ppo = PPO(
        "MlpPolicy", DreamVecEnv(dreamer(), 4, obs="latent", horizon=5), n_steps=16, batch_size=32, seed=0, device="cpu"
    )
    ppo.learn(128)
    assert all(bool(p.isfinite().all()) for p in ppo.policy.parameters())


def test_attributes_are_those_of_all_dreams() -> None:
    env = DreamVecEnv(dreamer(), 3, obs="latent", render_mode="rgb_array")
    assert env.get_attr("num_envs", [0, 2]) == [3, 3] and env.env_is_wrapped(gym.Wrapper) == [False] * 3
    env.reset()
    assert [picture.shape for picture in env.get_images()] == [(16, 16, 3)] * 3
    with pytest.raises(UsageError, match="only be set for all"):
        env.set_attr("note", 1, indices=0)
    env.set_attr("note", 1)
    assert env.get_attr("note") == [1, 1, 1]
    with pytest.raises(UsageError, match="no method 'jump'"):
        env.env_method("jump")
    with pytest.raises(UsageError, match="leave out autoreset_mode"):
        DreamVecEnv(dreamer(), 1, autoreset_mode="NextStep")
    env.set_options({"strat": 2})
    with pytest.raises(UsageError, match=r"not \['strat'\]"):
        env.reset()
    env.close()
