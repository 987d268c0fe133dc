"""What an agent reads from CarRacing's pictures before they are resized: score, unvisited tiles, missed ones."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from worldmodel.config import EnvConfig
from worldmodel.envs.car_misses import Misses, misses_vector
from worldmodel.envs.car_score import SIDE, score_vector
from worldmodel.envs.car_tiles import brighten_tiles
from worldmodel.envs.thermometer import PLACES
from worldmodel.errors import UsageError

OPTIONS = ("read_score", "see_tiles", "see_misses")


class Reader:
    """Reads one episode's pictures, as `config` (its `read_score`, `see_tiles` and `see_misses`) says."""

    def __init__(self, config: EnvConfig) -> None:
        self.options = tuple(name for name in OPTIONS if getattr(config, name))
        vectors = {"read_score": "score", "see_misses": "missed"}
        self.vectors = [vectors[name] for name in self.options if name in vectors]
        self.misses = Misses()

    def read(self, picture: np.ndarray, frames: int | None) -> np.ndarray | dict[str, np.ndarray]:
        """What `picture` (96, 96, 3) uint8, seen `frames` after the last one (None: the first), tells.

        Returns the picture, its tiles brightened where that is asked for; with anything else that is read, a dict of
        `image` and `score` and `missed`, (20,) float32 each.
        """
        if frames is None:
            self.misses.start()
        told = {}
        if "read_score" in self.options:
            told["score"] = score_vector(picture)
        if "see_misses" in self.options:
            told["missed"] = misses_vector(self.misses.see(picture, frames or 0))
        image = brighten_tiles(picture) if "see_tiles" in self.options else picture
        return {"image": image, **told} if told else image


class ReadPicture(gym.Wrapper):
    """Observations as `reader` gives them. Outside `ActionRepeat`, whose frames it counts.

    Raises UsageError, naming the option that looks at them, for an environment without CarRacing's pictures.
    """

    def __init__(self, env: gym.Env, reader: Reader) -> None:
        super().__init__(env)
        self._reader = reader
        space = env.observation_space
        if space.shape != (SIDE, SIDE, 3):
            option = f"--env.{reader.options[0].replace('_', '-')}"
            raise UsageError(f"{option} looks at CarRacing's {SIDE} x {SIDE} pictures, not {space}: leave {option} off")
        if reader.vectors:
            vectors = {name: Box(0, 1, (PLACES,), np.float32) for name in reader.vectors}
            self.observation_space = Dict({"image": space, **vectors})

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._reader.read(observation, None), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._reader.read(observation, info["frames"]), reward, terminated, truncated, info
