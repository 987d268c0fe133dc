"""The real task's own actions, turned into the agent's: the wrappers' maps, backwards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Space

from worldmodel.envs.spaces import Spaces
from worldmodel.envs.wrappers import SignedThrottle, UnitActions, ZeroBased
from worldmodel.errors import UsageError

Convert = Callable[[Any], np.ndarray]
"""One action of the environment -> (A,) float32 as the world takes it: in [-1, 1], or one-hot."""


def agent_actions(spaces: Spaces) -> tuple[Space, Convert]:
    """The action space of the wrapped task, in which the agent acts."""
    if spaces.discrete:
        return Discrete(spaces.actions), functools.partial(_one_hot, size=spaces.actions)
    return Box(-1, 1, (spaces.actions,), np.float32), functools.partial(_vector, size=spaces.actions)


def task_actions(env: gym.Env, spaces: Spaces) -> tuple[Space, Convert]:
    """The action space of the real task itself; `env` is the wrapped task.

    CarRacing's (steer, gas, brake) becomes (steer, gas - brake), which undoes the wrapper's map exactly: of
    gas and brake at once, which no wrapped action means, the difference is left.
    """
    layer = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, SignedThrottle):
            return layer.env.action_space, _signed
        if isinstance(layer, UnitActions):
            return layer.env.action_space, functools.partial(_unit, space=layer.env.action_space)
        if isinstance(layer, ZeroBased):
            first = int(layer.env.action_space.start)
            return layer.env.action_space, functools.partial(_one_hot, size=spaces.actions, first=first)
        layer = layer.env
    return agent_actions(spaces)


def _signed(action: Any) -> np.ndarray:
    steer, gas, brake = np.clip(_numbers(action, 3), [-1, 0, 0], 1)
    return np.array([steer, gas - brake], np.float32)


def _unit(action: Any, space: Box) -> np.ndarray:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    share = (_numbers(action, len(low)) - low) / np.where(high > low, high - low, 1)
    return np.clip(2 * share - 1, -1, 1).astype(np.float32)


def _vector(action: Any, size: int) -> np.ndarray:
    return np.clip(_numbers(action, size), -1, 1)


def _numbers(action: Any, size: int) -> np.ndarray:
    values = np.asarray(action, np.float32)
    if values.shape != (size,):
        raise UsageError(f"an action must be {size} numbers, not {action!r}")
    if not np.isfinite(values).all():
        raise UsageError(f"an action must be finite, not {action!r}")
    return values


def _one_hot(action: Any, size: int, first: int = 0) -> np.ndarray:
    value = np.asarray(action)
    whole = value.size == 1 and (np.issubdtype(value.dtype, np.integer) or float(value.item()).is_integer())
    if not whole or not first <= int(value.item()) < first + size:
        raise UsageError(f"an action must be an integer from {first} to {first + size - 1}, not {action!r}")
    return np.eye(size, dtype=np.float32)[int(value.item()) - first]
