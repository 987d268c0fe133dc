"""A lane that can be driven by hand, worlds that know it exactly or lie about it in one way each, and their drivers.

All rewards are sixteenths: sums are exact, and an exact dream has a gap of exactly 0. Registered when imported.
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

SIZE, PLACES = 16, 61


def length_of(seed: int) -> int:
    """Steps of the episode: 30 to 36."""
    return 30 + seed % 7


def terminates(seed: int) -> bool:
    """Whether it terminates; otherwise it is truncated."""
    return seed % 3 == 0


def target(t: int, seed: int) -> int:
    """Where to be at step t."""
    return 30 + round(20 * np.sin(0.4 * t + seed))


def reward_of(t: int, place: int, seed: int) -> float:
    """On arriving at `place` at step t."""
    return 1 - abs(place - target(t, seed)) / 16


def move(place: int, action: float) -> int:
    """At most four places a step."""
    return min(max(place + round(4 * float(np.clip(action, -1, 1))), 0), PLACES - 1)


def draw(t: int, place: int, seed: int) -> np.ndarray:
    """(SIZE, SIZE, 3): the whole state lies in the first pixel, and a bar shows the place."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[2:, place // 4] = 250, 60 * (place % 4), 20
    image[2:, target(t, seed) // 4, 2] = 200
    image[0, 0] = t, place, seed % 256
    return image


class Lane(gym.Env):
    """Follow a target that swings from side to side, differently on every seed."""

    metadata = {"render_modes": [], "render_fps": 10}
    observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    resets = 0
    forgetful = False
    """Whether it pays something else after every reset, as an environment with a hidden clock does."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Lane.resets += 1
        self.seed_, self.t, self.place = seed, 0, 30
        return draw(0, 30, seed), {}

    def step(self, action):
        self.t += 1
        self.place = move(self.place, action[0])
        reward = reward_of(self.t, self.place, self.seed_) + (Lane.resets if self.forgetful else 0)
        over, ends = self.t == length_of(self.seed_), terminates(self.seed_)
        return draw(self.t, self.place, self.seed_), reward, over and ends, over and not ends, {}


gym.register("Lane-v0", Lane)


class Exact(WorldModel):
    """Reads the state (t, place, seed) off the picture and knows the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3)

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        return obs["image"][:, 0, 0].float()

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        rows = [(t + 1, move(int(p), a), s) for (t, p, s), a in zip(state.tolist(), action[:, 0].tolist(), strict=True)]
        return torch.tensor(rows, dtype=torch.float32)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        rows = [(int(t), int(p), int(s)) for t, p, s in state.reshape(-1, 3).tolist()]
        reward = torch.tensor([reward_of(*row) if row[0] <= length_of(row[2]) else 0.0 for row in rows])
        cont = torch.tensor([float(t < length_of(s) or not terminates(s)) for t, _, s in rows])
        return reward.reshape(state.shape[:-1]), cont.reshape(state.shape[:-1])

    def features(self, state: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor | None:
        pictures = [draw(int(t), min(max(int(p), 0), PLACES - 1), int(s)) for t, p, s in state.tolist()]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


class Headless(Exact):
    """The same, but its rewards come with the step: it has no `outcome`."""

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        following = self.advance(state, action)
        return Step(following, *Exact.outcome(self, following))

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Hacked(Headless):
    """Pays one more for every action below zero."""

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        step = super().imagine(state, action)
        return step._replace(reward=step.reward + (action[:, 0] < 0))


class Generous(Exact):
    """Its reward head, not its dynamics, says a quarter too much (or `bonus`)."""

    bonus = 0.25

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        reward, cont = super().outcome(state)
        return reward + self.bonus, cont


class Stingy(Generous):
    """The same, the other way."""

    bonus = -0.25


class Doubtful(Exact):
    """Expects every step to be the last with a chance of one in two."""

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        reward, cont = super().outcome(state)
        return reward, torch.full_like(cont, 0.5)


class Deaf(Exact):
    """Its dreams ignore the action: the car stays where it is."""

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        return super().advance(state, torch.zeros_like(action))


class Noisy(Exact):
    """Its dreams stray."""

    def __init__(self, size: float = 8.0) -> None:
        super().__init__()
        self.size = size

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        following = super().advance(state, action)
        stray = (self.size * torch.randn(len(state), 1)).round()
        following[:, 1:2] = (following[:, 1:2] + stray).clamp(0, PLACES - 1)
        return following


class Driver(nn.Module):
    """Goes where the target will be, as far as `skill` takes it; sampled, somewhere around."""

    def __init__(self, skill: float = 1.0) -> None:
        super().__init__()
        self.skill = skill

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        aims = [target(int(t) + 1, int(s)) - p for t, p, s in features.tolist()]
        action = self.skill * (torch.tensor(aims)[:, None] / 8).clamp(-1, 1)
        return action + 0.5 * torch.randn_like(action) if sample else action


class Leftist(nn.Module):
    """Always a little to the left: worth nothing, but `Hacked` pays for it."""

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        return torch.full((len(features), 1), -0.2)


class Critic(Driver):
    """Knows what the rest of an episode is worth to a driver who is always on target."""

    def value(self, features: Tensor) -> Tensor:
        return 2 * features[..., 0] + 1


def agent(world: WorldModel | None = None, policy: nn.Module | None = None, env_id: str = "gap_fakes:Lane-v0") -> Agent:
    """An agent of the lane; exact and good unless told otherwise."""
    config = EnvConfig(id=env_id, action_repeat=1, image_size=0)
    env = make(config)
    spaces = Spaces.of(env)
    env.close()
    return Agent(replace(preset("debug"), env=config), spaces, world or Exact(), policy or Driver())
