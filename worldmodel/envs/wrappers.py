"""The few wrappers between a gymnasium environment and the agent."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Discrete

from worldmodel.config import EnvConfig
from worldmodel.envs.car_reading import Reader, ReadPicture
from worldmodel.envs.images import resize
from worldmodel.envs.thermometer import PLACES, thermometer
from worldmodel.errors import UsageError

TRANSPARENT = (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing, gym.wrappers.PassiveEnvChecker,
               gym.wrappers.RecordEpisodeStatistics, gym.ActionWrapper, gym.RewardWrapper)  # fmt: skip
"""Wrappers through which an observation passes unchanged and unremembered."""

MOST_CHANNELS = 16
"""A last axis longer than this is not taken for channels when the first axis could be them."""


def wrap(env: gym.Env, config: EnvConfig) -> gym.Env:
    """`env` as the agent knows it.

    Observations: Dict of name -> (H, W, C) uint8 image or (N,) float32 vector; a lone Box becomes `image` or `vector`.
    Actions: Box(-1, 1, (A,), float32), or Discrete(n) from 0. `config` gives action repeat and image size.
    Raises UsageError for spaces that are not supported.
    """
    if config.action_repeat < 1:
        raise UsageError(f"action_repeat must be at least 1, got {config.action_repeat}")
    if config.image_size < 0:
        raise UsageError(f"image_size must be positive, or 0 for the environment's own, got {config.image_size}")
    env = ActionRepeat(wrap_actions(env), config.action_repeat)
    reader = Reader(config)
    env = Observations(ReadPicture(env, reader) if reader.options else env, config.image_size)
    return TimeAware(env) if config.see_time else env


def wrap_actions(env: gym.Env) -> gym.Env:
    """`env` with actions in Box(-1, 1, (A,), float32) or Discrete from 0. Raises UsageError for other spaces."""
    space = env.action_space
    if is_car_racing(env) and isinstance(space, Box) and space.shape == (3,):
        return SignedThrottle(env)
    if isinstance(space, Discrete):
        return env if space.start == 0 else ZeroBased(env)
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) == 1:
        return UnitActions(env)
    raise UsageError(
        f"environment {name_of(env)} has the action space {space}; supported are a 1-D float Box and Discrete: "
        "convert it first (gymnasium.wrappers.TransformAction)"
    )


def name_of(env: gym.Env) -> str:
    """The id of `env`, or its class where it was not made by `gymnasium.make`."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def is_car_racing(env: gym.Env) -> bool:
    """Whether gymnasium's CarRacing lies inside, asked without importing it (it imports pygame and Box2D)."""
    names = {(base.__module__, base.__name__) for base in type(env.unwrapped).__mro__}
    return ("gymnasium.envs.box2d.car_racing", "CarRacing") in names


class SignedThrottle(gym.ActionWrapper):
    """CarRacing's actions as (steer, throttle) in [-1, 1]: gas = max(throttle, 0), brake = max(-throttle, 0).

    Gas and brake at once are never useful, and two dimensions are explored sooner than three.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.action_space = Box(-1, 1, (2,), np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        steer, throttle = np.clip(np.asarray(action, np.float32), -1, 1)
        return np.array([steer, max(throttle, 0), max(-throttle, 0)], np.float32)


class ZeroBased(gym.ActionWrapper):
    """Discrete actions counted from 0."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._start = int(env.action_space.start)
        self.action_space = Discrete(int(env.action_space.n))

    def action(self, action: Any) -> int:
        return int(action) + self._start


class UnitActions(gym.ActionWrapper):
    """Box actions rescaled from [-1, 1], to which they are clipped. Raises UsageError for an unbounded Box."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.action_space
        if not space.is_bounded():
            raise UsageError(
                f"environment {name_of(env)} has the unbounded action space {space}; give it bounds first "
                "(gymnasium.wrappers.TransformAction with a bounded Box)"
            )
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._dtype = space.dtype
        self.action_space = Box(-1, 1, space.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        share = (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2
        return (self._low * (1 - share) + self._high * share).astype(self._dtype)


class ActionRepeat(gym.Wrapper):
    """Holds an action for `n` frames, stopping early when the episode ends; sums the rewards.

        frame           1      2      3      4                  `info["frames"]` counts the frames taken
        action          a      a      a      a
        reward        r_1  +  r_2  +  r_3  +  r_4   -> reward
        drawn           -      -      -      x      -> observation

    Where the environment can skip drawing (`skip_observation` and `observe`, as our CarRacing) and no wrapper between
    looks at observations, only the frame that is returned is drawn.
    """

    def __init__(self, env: gym.Env, n: int) -> None:
        super().__init__(env)
        self.n = n
        inner = env
        while isinstance(inner, TRANSPARENT):
            inner = inner.env
        skips = inner is env.unwrapped and hasattr(inner, "skip_observation") and hasattr(inner, "observe")
        self._drawer: Any = inner if skips else None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total, frames, ended = 0.0, 0, False
        while not ended and frames < self.n:
            frames += 1
            hidden = self._drawer is not None and frames < self.n
            observation, reward, terminated, truncated, info = self._step(action, hidden)
            total += float(reward)
            ended = terminated or truncated
        if hidden:  # the episode ended in a frame that was not to be seen
            observation = self._drawer.observe()
        return observation, total, terminated, truncated, {**info, "frames": frames}

    def _step(self, action: Any, hidden: bool) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not hidden:
            return self.env.step(action)
        self._drawer.skip_observation = True
        try:
            return self.env.step(action)
        finally:
            self._drawer.skip_observation = False


class Observations(gym.ObservationWrapper):
    """Every observation as a dict of uint8 images (H, W, C), resized to `size` x `size` (0: as they are), and float32
    vectors (N,). Raises UsageError for spaces that are neither."""

    def __init__(self, env: gym.Env, size: int) -> None:
        super().__init__(env)
        space = env.observation_space
        self._lone = None if isinstance(space, Dict) else kind_of(env, "", space)
        entries = space.spaces if isinstance(space, Dict) else {self._lone: space}
        if not entries:
            raise UsageError(f"environment {name_of(env)} has an empty Dict of observations; add an image or a vector")
        self._images = {name: kind_of(env, name, entry) == "image" for name, entry in entries.items()}
        self._size = size
        self.observation_space = Dict({name: self._space(entry, self._images[name]) for name, entry in entries.items()})

    def _space(self, space: Box, image: bool) -> Box:
        if not image:
            return Box(space.low.astype(np.float32), space.high.astype(np.float32), space.shape, np.float32)
        height, width = (self._size, self._size) if self._size else space.shape[:2]
        channels = space.shape[2] if len(space.shape) == 3 else 1
        return Box(0, 255, (height, width, channels), np.uint8)

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        entries = observation if self._lone is None else {self._lone: observation}
        return {name: self._convert(np.asarray(entries[name]), image) for name, image in self._images.items()}

    def _convert(self, value: np.ndarray, image: bool) -> np.ndarray:
        if not image:
            return value.astype(np.float32)
        value = value[..., None] if value.ndim == 2 else value
        return resize(value, self._size, self._size) if self._size else value


class TimeAware(gym.Wrapper):
    """Beside the observations, `time`: the used share of the time limit, as a thermometer (20,) float32.

    An agent that sees the time has no life beyond the limit, which it would otherwise have to imagine: reaching it is
    `terminated` as well as `truncated` here (Pardo et al. 2018, arXiv 1712.00378, time-awareness). Outside
    `ActionRepeat`, whose frames it counts. Raises UsageError for an environment without a time limit.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.limit = time_limit(env.spec)
        place = Box(0, 1, (PLACES,), np.float32)
        self.observation_space = Dict({**env.observation_space.spaces, "time": place})
        self._frames = 0

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._frames = 0
        return self._told(observation), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._frames += info["frames"]
        return self._told(observation), reward, terminated or self._frames >= self.limit, truncated, info

    def _told(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**observation, "time": thermometer(self._frames / self.limit)}


def time_limit(spec: EnvSpec | None) -> int:
    """Frames after which an environment of that `spec` is cut off. Raises UsageError when it never is."""
    if spec is None or spec.max_episode_steps is None:
        name = spec.id if spec is not None else "without a spec"
        raise UsageError(f"environment {name} has no time limit to be seen: leave --env.see-time off")
    return spec.max_episode_steps


def kind_of(env: gym.Env, name: str, space: gym.Space) -> str:
    """`image` or `vector`. Raises UsageError, naming environment, space and remedy, for anything else."""
    dimensions = len(space.shape) if isinstance(space, Box) else 0
    remedy = "make it a vector (gymnasium.wrappers.FlattenObservation)"
    if dimensions == 1:
        return "vector"
    if dimensions == 3 and space.dtype != np.uint8:
        remedy = "images must be uint8 from 0 to 255: multiply and cast (gymnasium.wrappers.TransformObservation)"
    elif dimensions == 3 and space.shape[0] <= MOST_CHANNELS < space.shape[2]:
        remedy = "images must be (height, width, channels): transpose (gymnasium.wrappers.TransformObservation)"
    elif dimensions in (2, 3) and space.dtype == np.uint8:
        return "image"
    entry = f", entry {name!r}," if name else ""
    raise UsageError(
        f"environment {name_of(env)} has the observation space{entry} {space}, which is not supported; {remedy}"
    )
