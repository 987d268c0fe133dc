"""What an agent sees and does: the shapes of its observations and the kind of its actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from worldmodel.errors import UsageError


@dataclass(frozen=True)
class Spaces:
    """Observations and actions of a wrapped environment.

    A 3-D shape (H, W, C) is a uint8 image, a 1-D shape (N,) a float32 vector. Continuous actions lie in [-1, 1].
    """

    observations: dict[str, tuple[int, ...]]
    """Shape of every named observation."""
    discrete: bool
    """Whether an action is one of `actions` choices (an int) or `actions` numbers."""
    actions: int
    """Number of choices (discrete) or dimensions (continuous)."""

    @property
    def images(self) -> dict[str, tuple[int, ...]]:
        """The image observations alone."""
        return {name: shape for name, shape in self.observations.items() if len(shape) == 3}

    @property
    def vectors(self) -> dict[str, tuple[int, ...]]:
        """The vector observations alone."""
        return {name: shape for name, shape in self.observations.items() if len(shape) == 1}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        observations = {name: list(shape) for name, shape in self.observations.items()}
        return {"observations": observations, "discrete": self.discrete, "actions": self.actions}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spaces:
        """The inverse of `to_dict`."""
        observations = {name: tuple(shape) for name, shape in values["observations"].items()}
        return cls(observations, bool(values["discrete"]), int(values["actions"]))

    @classmethod
    def of(cls, env: gym.Env) -> Spaces:
        """The spaces of an environment made by `make` or `wrap`. Raises UsageError for one that was not wrapped."""
        observed, action = env.observation_space, env.action_space
        if not isinstance(observed, gym.spaces.Dict) or not isinstance(action, gym.spaces.Box | gym.spaces.Discrete):
            raise UsageError(f"{env} is not wrapped (observations {observed}, actions {action}); "
                             "use worldmodel.envs.wrap(env, config) first")  # fmt: skip
        shapes = {name: tuple(space.shape) for name, space in observed.spaces.items()}
        if isinstance(action, gym.spaces.Discrete):
            return cls(shapes, True, int(action.n))
        return cls(shapes, False, int(action.shape[0]))
