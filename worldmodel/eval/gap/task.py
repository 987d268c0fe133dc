"""What the real environment declares of itself, and what only CarRacing has."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from worldmodel.envs.wrappers import is_car_racing
from worldmodel.eval.recording import seconds_per_step

if TYPE_CHECKING:
    import gymnasium as gym

    from worldmodel.agent import Agent

ZOOM_SECONDS = 1.0
"""CarRacing's camera zooms in during the first second."""


@dataclass(frozen=True)
class Task:
    """The facts of a wrapped environment that the gap depends on."""

    env_id: str
    action_repeat: int
    limit: int | None
    """Agent steps after which an episode is cut off; None when the environment declares no limit."""
    threshold: float | None
    """The return at which the environment counts as solved, where declared."""
    step_seconds: float | None
    car_racing: bool

    @classmethod
    def of(cls, agent: Agent, env: gym.Env) -> Task:
        """The facts of `env`, made by `agent.make_env()`."""
        repeat, spec = agent.config.env.action_repeat, env.spec
        frames = spec.max_episode_steps if spec is not None else None
        return cls(
            env_id=agent.config.env.id, action_repeat=repeat, limit=math.ceil(frames / repeat) if frames else None,
            threshold=spec.reward_threshold if spec is not None else None,
            step_seconds=seconds_per_step(env, repeat), car_racing=is_car_racing(env),
        )  # fmt: skip

    @property
    def settle(self) -> int:
        """The first agent step at which the picture is as it will stay."""
        return math.ceil(ZOOM_SECONDS / self.step_seconds) if self.car_racing and self.step_seconds else 0

    def reference(self, horizon: int) -> float | None:
        """The part of `threshold` that falls on `horizon` agent steps of an episode of `limit`."""
        if self.threshold is None or self.limit is None:
            return None
        return self.threshold * min(1.0, horizon / self.limit)

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self) | {"settle": self.settle}
