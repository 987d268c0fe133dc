"""The dream as an environment: `gymnasium.make("worldmodel/Dream-v0", checkpoint="runs/carracing")`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.envs.dream_subject import DreamOptions, subject_of
from worldmodel.envs.dreaming import Dreams
from worldmodel.envs.spaces import Spaces
from worldmodel.envs.starts import Starts
from worldmodel.errors import UsageError

__all__ = ["DreamEnv", "DreamOptions", "Starts"]


class DreamEnv(gym.Env, gym.utils.EzPickle):
    """One dream, which begins in a state that a real episode led to. One step is one agent step: where the real task
    repeats actions, several of its frames, whose rewards are predicted as one sum.

        state     s_start    s_1        s_2    ...     s_horizon        s_{t+1}, reward, continue = imagine(s_t, action)
        action          a_0        a_1                                  terminated: by the continue head (`cont`)
        reward              r_1        r_2     ...     r_horizon        truncated: after `horizon` steps

    Seeding: at every reset the start and the seed of the dream's noise are drawn from `np_random`; a dream is a
    function of seed and actions, bit for bit on one machine's CPU. `reset(options={"start": i})` chooses the start.
    Info: `start`, `start_episode` and `start_step` (the real episode's seed and its step), `imagined_steps`,
    `cont_prob`, `raw_reward` (without the penalty), `temperature`, and with a penalty `disagreement`.

    Args:
        checkpoint: path of a run or an agent, an `Agent`, or a `WorldModel`.
        spaces: what acts in a `WorldModel` given alone.
        starts: where dreams begin; left out, those packaged with the agent, or, where it has none, some collected by
            driving a few real episodes (kept with the loaded agent, with a warning).
        render_mode: None or `rgb_array`.
        options: fields of `DreamOptions`.

    Raises UsageError for wrong options, or what the world cannot do; CorruptError for starts of another agent.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}  # CarRacing's 50 frames with action repeat 4

    def __init__(self, checkpoint: Any, *, spaces: Spaces | None = None, starts: Starts | None = None,
                 render_mode: str | None = None, **options: Any) -> None:  # fmt: skip
        gym.utils.EzPickle.__init__(self, checkpoint, spaces=spaces, starts=starts, render_mode=render_mode, **options)
        self.options = DreamOptions.of(options)
        self.render_mode = checked_mode(render_mode)
        subject = subject_of(checkpoint, spaces, starts, self.options.device)
        self.dreams = Dreams(subject, self.options, 1, render=render_mode is not None)
        self.starts = subject.starts
        if not self.dreams.draws:
            self.metadata = {**self.metadata, "render_modes": []}
        self.observation_space, self.action_space = self.dreams.observation_space, self.dreams.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        info = self.dreams.begin(0, self.np_random, options)
        return self.dreams.observe([0])[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        told = self.dreams.step({0: action})[0]
        return self.dreams.observe([0])[0], told.reward, told.terminated, told.truncated, told.info

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            gym.logger.warn("no render_mode was given when the dream was made: use render_mode='rgb_array'")
            return None
        return coloured(self.dreams.pictures([0])[0])


def checked_mode(render_mode: str | None) -> str | None:
    """Raises UsageError unless it is a mode that dreams have."""
    if render_mode not in (None, "rgb_array"):
        raise UsageError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    return render_mode


def coloured(picture: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 as (H, W, 3): grey where C is not at least 3, else its first three channels."""
    return picture[..., :3].copy() if picture.shape[2] >= 3 else np.repeat(picture[..., :1], 3, axis=2)
