"""One real episode, as it happened: what the replay stores of it, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from worldmodel.envs import make
from worldmodel.envs.wrappers import is_car_racing
from worldmodel.errors import UsageError
from worldmodel.randomness import RowNoise, generator, local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent


@dataclass(frozen=True)
class Recording:
    """T steps of one episode. Step t: obs_t, the reward received on arriving at it, and the action taken at it.

    The last observation has no action: its row is zero.
    """

    obs: dict[str, np.ndarray]
    """name -> (T, H, W, C) uint8 or (T, N) float32."""
    actions: np.ndarray
    """(T, A) float32; one-hot where discrete."""
    rewards: np.ndarray
    """(T,) float32; 0 at an episode's first step."""
    is_first: np.ndarray
    """(T,) bool."""
    is_terminal: np.ndarray
    """(T,) bool: terminated here; a time limit is not terminal."""
    discrete: bool = False
    """Whether actions are one-hot."""
    seed: int | None = None
    """Of the environment's reset."""
    step_seconds: float | None = None
    """Simulated seconds of one agent step, where known."""
    action_names: tuple[str, ...] = ()
    """Of the action's dimensions, where known."""

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, window: slice) -> Recording:
        """The same over a range of steps."""
        obs = {name: value[window] for name, value in self.obs.items()}
        return replace(self, obs=obs, actions=self.actions[window], rewards=self.rewards[window],
                       is_first=self.is_first[window], is_terminal=self.is_terminal[window])  # fmt: skip

    @property
    def image(self) -> np.ndarray:
        """(T, H, W, C) uint8: the pictures that the world model's decoder draws. Raises UsageError without any."""
        images = sorted(name for name, value in self.obs.items() if value.ndim == 4)
        if not images:
            raise UsageError(f"the observations {sorted(self.obs)} hold no image: there is nothing to look at")
        return self.obs[images[0]]  # `WorldModel.decode` draws the first by name


def record(
    agent: Agent,
    seed: int,
    *,
    sample: bool = False,
    steps: int | None = None,
    env: gym.Env | None = None,
    watch: Callable[[gym.Env], None] | None = None,
    rows: int = 1,
) -> Recording:
    """Drives one real episode from `env.reset(seed=seed)`, at most `steps` actions long, and keeps all of it.

    Neither the agent's own filtered state nor the global generators are touched. `env` (default: the agent's own)
    must be wrapped; it is closed only if it was made here. `watch(env)` is called at every step, to render it, say.
    `rows`: as of `drive`.
    """
    lived: list[dict[str, Any]] = []
    own = env is None
    env = make(agent.config.env) if own else env
    try:
        for row in drive(agent, env, seed, sample=sample, rows=rows):
            lived.append(row)
            if watch is not None:
                watch(env)
            if steps is not None and len(lived) > steps:
                break
    finally:
        step_seconds, names = (seconds_per_step(env, agent.config.env.action_repeat), action_names(env))
        if own:
            env.close()
    zero = np.zeros(agent.spaces.actions, np.float32)
    actions = [zero if row["action"] is None else row["action"] for row in lived]
    actions[-1] = zero
    return Recording(
        obs={name: np.stack([row["obs"][name] for row in lived]) for name in lived[0]["obs"]},
        actions=np.stack(actions), rewards=np.array([row["reward"] for row in lived], np.float32),
        is_first=np.arange(len(lived)) == 0, is_terminal=np.array([row["terminal"] for row in lived]),
        discrete=agent.spaces.discrete, seed=seed, step_seconds=step_seconds, action_names=names,
    )  # fmt: skip


def drive(agent: Agent, env: gym.Env, seed: int, *, sample: bool = False, rows: int = 1) -> Iterator[dict[str, Any]]:
    """One real episode, step by step: dicts of obs, reward (on arriving), action (taken here, (A,) float; None once the
    episode is over), terminal and info. Works on a fork of the agent; its noise comes from `seed`.

    The last bits of a product depend on how many rows it has, and with them, in the end, the episode: `rows` copies
    side by side repeat bit for bit what `lockstep.play` did with as many episodes.
    """
    pilot = agent.fork()
    pilot.start(rows)
    obs, info = env.reset(seed=seed)
    reward, terminated, truncated, first = 0.0, False, False, True
    number, noise = (0, RowNoise([generator(seed) for _ in range(rows)]))  # as in `lockstep.play`
    while True:
        over = terminated or truncated
        action = None
        if not over:
            # The consumer runs between two steps: the global randomness is therefore borrowed for each step alone.
            with local_randomness(number, pilot.state.device), noise:
                batch = {name: np.repeat(value[None], rows, 0) for name, value in obs.items()}
                action = pilot.step(batch, np.full(rows, first), sample)[0]
        taken = None if over else library_action(action, agent.spaces.discrete, agent.spaces.actions)
        yield {"obs": obs, "reward": reward, "terminal": terminated, "info": info, "action": taken}
        if over:
            return
        obs, reward, terminated, truncated, info = env.step(action)
        first, number = False, number + 1


def library_action(action: np.ndarray, discrete: bool, count: int) -> np.ndarray:
    """An environment's action as the world model takes it: (A,) float32, one-hot where discrete."""
    if discrete:
        return np.eye(count, dtype=np.float32)[int(action)]
    return np.asarray(action, np.float32)


def seconds_per_step(env: gym.Env, action_repeat: int) -> float | None:
    """Simulated seconds of one agent step, from the environment's own frame rate; None when it declares none."""
    fps = env.metadata.get("render_fps")
    return action_repeat / fps if fps else None


def action_names(env: gym.Env) -> tuple[str, ...]:
    """What the dimensions of a wrapped environment's continuous actions are called, where that is known."""
    return ("steer", "throttle") if is_car_racing(env) and env.action_space.shape == (2,) else ()
