"""A whole episode dreamed in short stretches: every few steps the dream may look at reality, then goes on alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from worldmodel.errors import UsageError
from worldmodel.eval.openloop import device_of, pictures, posterior
from worldmodel.eval.recording import Recording
from worldmodel.models.base import dream
from worldmodel.randomness import RowNoise, generator, local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent


@dataclass(frozen=True)
class Regrounded:
    """T steps of an episode beside their dream."""

    truth: np.ndarray
    """(T, H, W, C) uint8."""
    dream: np.ndarray
    """(T, H, W, C) float32 in [0, 1]."""
    imagined: np.ndarray
    """(T,) int: steps since the dream last saw the truth; 0 where it just did."""
    reward_paid: np.ndarray
    """(T,) float32."""
    reward_dream: np.ndarray
    """(T,) float32: dreamed on arriving at each step, before looking; 0 at step 0."""
    recording: Recording


def reground(agent: Agent, episode: Recording, every: int = 25, *, seed: int = 0) -> Regrounded:
    """Dreams `episode` under its own actions, looking at the truth at steps 0, every, 2 every, ...

    The reward at a step where it looks is that of the stretch before, `every` imagined steps old. Filtering sees the
    whole episode; a stretch from step s starts at the posterior of s. Raises UsageError for an episode shorter than two
    steps, `every` < 1, or a world that cannot draw pictures.
    """
    length = len(episode)
    if every < 1 or length < 2:
        raise UsageError(f"every must be >= 1 and the episode have two steps or more, got {every} and {length}")
    device = device_of(agent.world)
    looks = np.arange(0, length, every)
    obs = {name: torch.from_numpy(value[:, None]).to(device) for name, value in episode.obs.items()}
    actions = torch.from_numpy(episode.actions[:, None]).to(device)
    with torch.no_grad(), local_randomness(seed, device):
        with RowNoise([generator(seed, episode.seed or 0)]):
            states = posterior(agent.world, obs, actions)[0][:, 0]
        plan = torch.zeros(every, len(looks), actions.shape[-1], device=device)
        for j, look in enumerate(looks):
            piece = actions[look : look + every, 0]
            plan[: len(piece), j] = piece
        with RowNoise([generator(seed, episode.seed or 0, int(look)) for look in looks]):
            dreamed = dream(agent.world, states[looks], plan, every)
        t = torch.arange(length, device=device)
        frames = pictures(agent.world, dreamed.states[t % every, t // every][:, None])[:, 0]
        before = t[1:] - 1  # arriving at t is the (before % every)-th dreamed step of the stretch that holds t - 1
        rewards = dreamed.rewards[before % every, before // every]
    return Regrounded(
        truth=episode.image, dream=frames.float().cpu().numpy(), imagined=np.arange(length) % every,
        reward_paid=episode.rewards, reward_dream=np.append(np.float32(0), rewards.float().cpu().numpy()),
        recording=episode,
    )  # fmt: skip
