"""Reality played on from a moment of an episode, under other actions.

CarRacing and the toy worlds are deterministic given (seed, actions): a fork is a reset with the seed, a replay of the
actions up to the moment, and then the new ones. `copy.deepcopy` does not fork a gymnasium environment: EzPickle makes
it return a fresh one. While replaying, every reward is compared with the recorded one: an environment that does not
repeat itself cannot be forked, and is told so.

    t              0 ........ start     start+1   ...   start+H
    recorded       replayed   (state)                                drawn only where the environment must
    fork                        plan_0     plan_1 ...                rewards, flags and observations of H steps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.envs.wrappers import ActionRepeat, Observations
from worldmodel.errors import UsageError
from worldmodel.eval.gap.episodes import Lived


@dataclass(frozen=True)
class Start:
    """A moment of a real episode: before the action at step `t` of `lived`."""

    lived: Lived
    t: int

    @property
    def seed(self) -> int:
        """Of the episode."""
        return self.lived.seed

    @property
    def state(self) -> np.ndarray:
        """(S,): what the agent knew there."""
        return self.lived.states[self.t]


@dataclass(frozen=True)
class Fork:
    """K <= H real steps from a start; K < H where the episode ended."""

    obs: dict[str, np.ndarray]
    """name -> (K, ...): what was seen on arriving at each step."""
    rewards: np.ndarray
    """(K,) float64."""
    terminated: bool
    truncated: bool

    def padded(self, horizon: int) -> np.ndarray:
        """(H,) rewards: nothing is paid after the end."""
        return np.pad(self.rewards, (0, horizon - len(self.rewards)))


def choose_starts(
    lived: Sequence[Lived], count: int, horizon: int, *, settle: int = 0, limit: int | None = None, seed: int = 0
) -> list[Start]:
    """At most `count` different starts, spread over the episodes and over the thirds of each.

    The i-th start lies in episode i modulo n, in a third that moves on from start to start. No start comes before
    `settle`, or so late that a time limit could cut the H steps short: a dream knows no clock (`limit` agent steps,
    or, where that is not known, the end of a truncated episode). The end of a task may fall into the H steps: whether
    the dream foresees it is part of the question.
    """
    rng, chosen, taken = np.random.default_rng([seed, horizon]), [], set()
    order = rng.permutation(len(lived))
    for i in range(3 * max(count, len(lived))):
        if len(chosen) == count:
            break
        episode = lived[order[i % len(lived)]]
        last = episode.length - 1
        if limit is not None:
            last = min(last, limit - horizon)
        if episode.truncated:
            last = min(last, episode.length - horizon)
        third = (i + i // len(lived)) % 3
        edges = np.linspace(settle, last + 1, 4)
        low, high = int(np.ceil(edges[third])), int(np.ceil(edges[third + 1]))
        if high <= low:
            continue
        t = int(rng.integers(low, high))
        if (episode.seed, t) not in taken:
            taken.add((episode.seed, t))
            chosen.append(Start(episode, t))
    return sorted(chosen, key=lambda start: (start.seed, start.t))


def fork(env: gym.Env, start: Start, plan: np.ndarray) -> Fork:
    """The real steps from `start` under `plan` (H, A), the library's actions. `env` is the agent's, and is reset.

    Raises UsageError where the environment does not repeat what was recorded.
    """
    replay(env, start)
    seen: list[dict[str, np.ndarray]] = []
    rewards: list[float] = []
    terminated = truncated = False
    for action in plan:
        obs, reward, terminated, truncated, _ = env.step(env_action(action, start.lived.recording.discrete))
        seen.append(obs)
        rewards.append(float(reward))
        if terminated or truncated:
            break
    names = seen[0] if seen else {}
    return Fork({n: np.stack([obs[n] for obs in seen]) for n in names}, np.array(rewards), bool(terminated),
                bool(truncated) and not terminated)  # fmt: skip


def replay(env: gym.Env, start: Start) -> None:
    """Brings `env` to `start`. Raises UsageError where it does not repeat what was recorded."""
    recording = start.lived.recording
    env.reset(seed=start.seed)
    unseen = Unseen(env)
    for t in range(start.t):
        reward, over = unseen.step(env_action(recording.actions[t], recording.discrete))
        if over or reward != start.lived.rewards[t + 1]:
            raise UsageError(
                f"the environment does not repeat itself: step {t + 1} of seed {start.seed} paid "
                f"{start.lived.rewards[t + 1]} when recorded and {reward} when replayed; its gap cannot be measured"
            )


class Unseen:
    """Steps a wrapped environment without drawing, where it offers that (as our CarRacing); otherwise as usual."""

    def __init__(self, env: gym.Env) -> None:
        self.env = env
        core, repeat = env.unwrapped, env.env if isinstance(env, Observations) else None
        able = isinstance(repeat, ActionRepeat) and hasattr(core, "skip_observation") and hasattr(core, "observe")
        self._core, self._repeat = (core, repeat) if able else (None, None)

    def step(self, action: Any) -> tuple[float, bool]:
        """One agent step: (reward, whether the episode is over)."""
        if self._repeat is None:
            _, reward, terminated, truncated, _ = self.env.step(action)
            return float(reward), bool(terminated or truncated)
        total, over, frames = 0.0, False, 0
        self._core.skip_observation = True
        try:
            while not over and frames < self._repeat.n:
                _, reward, terminated, truncated, _ = self._repeat.env.step(action)
                total, over, frames = total + float(reward), bool(terminated or truncated), frames + 1
        finally:
            self._core.skip_observation = False
        return total, over


def env_action(action: np.ndarray, discrete: bool) -> Any:
    """The library's action (A,) as the wrapped environment takes it: the inverse of `recording.library_action`."""
    return int(np.argmax(action)) if discrete else np.asarray(action, np.float32)
