"""Living in the real environment, one step at a time, and remembering it.

reset -> o_0; act -> a_0; remember (o_0, a_0, first); step -> o_1, r_1; act -> a_1; remember (o_1, a_1, r_1); ...
the last observation of an episode is remembered with an action of zeros, for none is taken there
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.agent import Agent
from worldmodel.envs.explore import RandomActions
from worldmodel.errors import NumericalError
from worldmodel.eval.lockstep import lap_finished
from worldmodel.replay import Replay
from worldmodel.train.slips import Slips


class Collector:
    """One environment and the episode that is under way in it.

    Args:
        env: wrapped. agent: acts, with a filtered state of its own. replay: remembers.
        explore: actions before the policy is worth asking. first_seed: of episode 0; episode i has `first_seed + i`.
        slips: of the policy's hand, when told to; None for none.
    """

    def __init__(
        self, env: gym.Env, agent: Agent, replay: Replay, explore: RandomActions, first_seed: int,
        slips: Slips | None = None,
    ):  # fmt: skip
        self.env, self.agent, self.replay, self.explore, self.first_seed = env, agent, replay, explore, first_seed
        self.slips = slips
        self.episode = 0
        self.frames = 0
        self.finished: dict[str, Any] | None = None
        """The last episode that ended: its index, seed, return, length, whether it terminated, lap_finished, whether
        it was driven at random, and in how many steps the hand slipped."""
        self._begin()

    @property
    def seed(self) -> int:
        """Seed of the running episode."""
        return self.first_seed + self.episode

    def step(self, random: bool, sample: bool = True, slip: bool = False) -> bool:
        """One agent step, at random or by the policy, whose action is sampled or its likeliest, and whose hand may slip
        in the episodes that are meant for it; True when it ended the episode."""
        action = self._random() if random else self._policy(sample, slip)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not np.isfinite(reward):
            raise NumericalError(f"the environment paid {reward} at step {self.length} of episode seed {self.seed}")
        self._arrive(obs, float(reward), False, bool(terminated))
        self.frames += info["frames"]
        self.returned += float(reward)
        self.length += 1
        if terminated or truncated:
            self._remember(np.zeros(self.replay.spaces.actions, np.float32), None)
            self.finished = {
                "episode": self.episode, "seed": self.seed, "return": self.returned, "length": self.length,
                "terminated": bool(terminated), "lap_finished": lap_finished(self.env, info), "random": random,
                "slipped": self.slipped,
            }  # fmt: skip
            self.episode += 1
            self._begin()
        return terminated or truncated

    def _begin(self) -> None:
        obs, _ = self.env.reset(seed=self.seed)
        self.start = self.replay.total
        self.returned, self.length, self.slipped = 0.0, 0, 0
        self._arrive(obs, 0.0, True, False)
        self.agent.start(1)

    def _arrive(self, obs: dict[str, np.ndarray], reward: float, is_first: bool, is_terminal: bool) -> None:
        for name, value in obs.items():
            if value.dtype != np.uint8 and not np.isfinite(value).all():
                where = f"step {self.length} of episode seed {self.seed}"
                raise NumericalError(f"the environment shows {value} as {name!r} at {where}")
        self.obs = obs
        self.arrival = {"reward": reward, "is_first": is_first, "is_terminal": is_terminal}

    def _remember(self, action: np.ndarray, state: np.ndarray | None) -> None:
        self.replay.add(self.obs, state, action=action, **self.arrival)

    def _random(self) -> Any:
        action = self.explore.step()
        if self.replay.spaces.discrete:
            self._remember(np.eye(self.replay.spaces.actions, dtype=np.float32)[action], None)
        else:
            self._remember(action, None)
        return action

    def _policy(self, sample: bool, slip: bool) -> Any:
        obs = {name: value[None] for name, value in self.obs.items()}
        action = self.agent.step(obs, np.array([self.arrival["is_first"]]), sample)[0]
        if slip and self.slips and self.slips.meant_for(self.episode):
            action = self._slip(action)
        # The unclipped action is what the policy chose, so that is what its log-probability must be taken of.
        self._remember(self.agent.action[0].cpu().numpy(), self.agent.state[0].cpu().numpy())
        return action

    def _slip(self, action: Any) -> Any:
        """What is done in place of `action`; the agent knows, and filters what comes by what was done."""
        slip = self.slips.instead(self.seed, self.length, self.agent.action)
        if slip is None:
            return action
        self.slipped += 1
        self.agent.action = slip
        return slip[0].argmax().item() if self.replay.spaces.discrete else slip[0].clamp(-1, 1).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """The running episode as its seed, in JSON types; its actions are in the replay, tensors in `tensors`."""
        return {
            "episode": self.episode, "frames": self.frames, "start": self.start,
            "returned": self.returned, "length": self.length, "slipped": self.slipped,
            "explore": self.explore.state_dict(),
        }  # fmt: skip

    def tensors(self) -> dict[str, torch.Tensor]:
        """The agent's filtered state and last action."""
        return {"state": self.agent.state, "action": self.agent.action}

    def restore(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str | None:
        """The inverse of both, once the replay is back: the running episode is driven again, action by action.

        Returns None, or why that is impossible: the episode was then cut off, and a new one begun.
        """
        self.episode, self.frames = values["episode"], values["frames"]
        self._begin()
        self.start = values["start"]
        obstacle = self._drive_again()
        self.returned, self.length, self.slipped = values["returned"], values["length"], values.get("slipped", 0)
        self.explore.load_state_dict(values["explore"])
        if obstacle is None:
            self.agent.state, self.agent.action = tensors["state"].clone(), tensors["action"].clone()
        else:
            self.episode += 1
            self._begin()
        return obstacle

    def _drive_again(self) -> str | None:
        steps = self.replay.total - self.start
        if steps > len(self.replay):
            kept = f"only the last {len(self.replay):,} of the running episode's {steps:,} steps are remembered"
            return f"{kept}, so it cannot be driven again"
        lived = self.replay.rows(self.start, self.replay.total)
        for t, action in enumerate(lived["action"]):
            same = bool(np.float32(self.arrival["reward"]) == lived["reward"][t])
            same &= all(np.array_equal(value, lived[f"obs.{name}"][t]) for name, value in self.obs.items())
            if same:
                choice = action.argmax() if self.replay.spaces.discrete else action.clip(-1, 1)
                obs, reward, terminated, truncated, _ = self.env.step(choice)
                self._arrive(obs, float(reward), False, bool(terminated))
            if not same or terminated or truncated:  # it went on when it was lived
                return "the environment did not repeat the running episode"
        return None
