"""A small real environment whose every return can be computed by hand, and a world model that knows it exactly.

Registered as `Beacon-v0` when imported, so `gymnasium.make("eval_fakes:Beacon-v0")` works in spawned workers too.
"""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.agent import Agent
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.models.base import Step, WorldModel
from worldmodel.presets import preset

SIZE = 16
BONUS = 100.0  # paid with the last step of an episode that terminates


def length_of(seed: int) -> int:
    """Steps of the episode: 4 to 12."""
    return 4 + seed * 5 % 9


def terminates(seed: int) -> bool:
    """Whether it terminates; otherwise it is truncated."""
    return seed % 3 != 0


def draw(t: int, position: int, length: int, ends: bool) -> np.ndarray:
    """(SIZE, SIZE, 3): the whole state lies in the first pixels, and a bar shows the position."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[0, 0] = t, position, length
    image[0, 1] = 255 * ends
    image[4:12, position % SIZE] = 200, 40 + 10 * t, 90
    return image


def reward_of(t: int, position: int, length: int, ends: bool) -> float:
    """On arriving at step t: different at every step, so that any shift in time shows."""
    return position + 0.25 * t * t + (BONUS if ends and t == length else 0.0)


class Beacon(gym.Env):
    """Moves a bar by 0, 1 or 2 columns a step."""

    metadata = {"render_modes": [], "render_fps": 10}
    observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)
    lap_complete_percent = 0.95  # as in CarRacing: laps are known here
    faulty: int | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_, self.t, self.position = seed, 0, seed % 5
        return self._look(), {}

    def step(self, action):
        assert self.t < length_of(self.seed_), "stepped beyond the end"
        if self.seed_ == 13:
            raise RuntimeError("track 13 is haunted")
        if self.seed_ == 666:
            import os

            os._exit(7)
        self.t += 1
        self.position += int(action)
        over, ends = self.t == length_of(self.seed_), terminates(self.seed_)
        reward = reward_of(self.t, self.position, length_of(self.seed_), ends)
        info = {"lap_finished": self.seed_ % 2 == 0} if over and ends else {}
        return self._look(), reward, over and ends, over and not ends, info

    def _look(self):
        return draw(self.t, self.position, length_of(self.seed_), terminates(self.seed_))


gym.register("Beacon-v0", Beacon)


class Oracle(WorldModel):
    """Reads the state off the picture and knows the rules. state = (t, position, length, ends, previous noise)."""

    def __init__(self, shift: int = 0, images: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.shift, self.images = shift, images

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, 5)

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        image = obs["image"].float()
        noise = torch.rand(len(image), 1)  # as the RSSM's posterior does: drawn whatever the policy's mode
        noise = torch.where(is_first[:, None], noise, (state[:, 4:] + noise) % 1)  # and it remembers since the first
        return torch.cat([image[:, 0, 0], image[:, 0, 1, :1] / 255, noise], 1)

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        state = state.clone()
        state[:, 0] += 1
        state[:, 1] += action.argmax(-1)
        rows = [(int(t) + self.shift, int(p), int(n), bool(e)) for t, p, n, e, _ in state.tolist()]
        reward = torch.tensor([reward_of(*row) for row in rows])
        cont = torch.tensor([float(not (e and t == n)) for t, _, n, e in rows])
        return Step(state, reward, cont)

    def features(self, state: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor | None:
        if not self.images:
            return None
        pictures = [draw(int(t), int(p), int(n), bool(e)) for t, p, n, e, _ in state.tolist()]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


class Driver(nn.Module):
    """Mode: always 1 (and 2 while the world's noise is high); sample: any of the three."""

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        choice = 1 + (features[:, 4] > 0.5).long()
        if sample:
            choice = (torch.rand(len(features)) * 3).long()
        return torch.nn.functional.one_hot(choice, 3).float()


def beacon_agent(world: WorldModel | None = None) -> Agent:
    """An agent of the beacon, with the oracle as its world."""
    env_config = EnvConfig(id="eval_fakes:Beacon-v0", action_repeat=1, image_size=0)
    env = make(env_config)
    return Agent(replace(preset("debug"), env=env_config), Spaces.of(env), world or Oracle(), Driver())
