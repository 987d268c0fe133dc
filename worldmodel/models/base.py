"""The contract between worlds and everything that dreams in them, and `dream`, the only imagination loop there is.

Shapes: B parallel trajectories, T time steps, S state, F features, A action, H horizon. Time comes first everywhere.

    obs         o_0        o_1        o_2            what was seen at step t
    is_first    1          0          0              o_t is the first of an episode
    reward      0          r_1        r_2            received on arriving at o_t
    is_terminal 0          0          1              o_t ends the episode (running out of time does not)
    action          a_0        a_1        a_2        taken at o_t
    state       s_0        s_1        s_2            s_t = observe(s_{t-1}, a_{t-1}, o_t, is_first_t)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Step(NamedTuple):
    """One dreamed step."""

    state: Tensor
    """(B, S)"""
    reward: Tensor
    """(B,) expected reward in environment units, received on arriving at `state`"""
    cont: Tensor
    """(B,) probability that the episode goes on at `state`; never multiplied by the discount"""


class Dream(NamedTuple):
    """Imagined trajectories; row t of `rewards` and `conts` belongs to `states[t + 1]`."""

    states: Tensor
    """(H + 1, B, S), the first row is the start"""
    actions: Tensor
    """(H, B, A)"""
    rewards: Tensor
    """(H, B)"""
    conts: Tensor
    """(H, B)"""


class After(NamedTuple):
    """What came after each of B sequences, up to the end of the episode in which they end."""

    rewards: Tensor
    """(K, B), zeros once `steps` are over"""
    steps: Tensor
    """(B,) how many steps, 0 to K, came after"""
    state: Tensor
    """(B, S) remembered state of the last of them"""
    is_terminal: Tensor
    """(B,) bool: whether the episode ended there"""


@dataclass(frozen=True)
class Batch:
    """Sequences of what really happened, time-major; they may cross episode boundaries."""

    obs: dict[str, Tensor]
    """name -> (T, B, H, W, C) uint8 images or (T, B, N) float32 vectors"""
    action: Tensor
    """(T, B, A) taken at each step; one-hot where actions are discrete"""
    reward: Tensor
    """(T, B) received on arriving at each step"""
    is_first: Tensor
    """(T, B) bool"""
    is_terminal: Tensor
    """(T, B) bool"""
    state: Tensor
    """(B, S) remembered state of the step before the first, zeros where there is none"""
    before: Tensor
    """(B, A) action taken at the step before the first"""
    after: After | None = None
    """What came after the last step, where the replay memory was asked to tell"""

    def previous_action(self) -> Tensor:
        """(T, B, A): the action that led to each step, the one a world consumes together with the observation."""
        return torch.cat([self.before[None], self.action[:-1]])


class WorldModel(nn.Module):
    """Answers "what happens next?". State is one float tensor (B, S), opaque to everyone but its world.

    A world that knows how unsure it is offers `disagreement(state (B, S), action (B, A)) -> (B,)`, at least 0, beside
    the methods below; a world whose `advance` takes a third argument `temperature` can be `tempered`.
    """

    feature_bound: float | None = None
    """No feature of any state lies beyond [-feature_bound, feature_bound]; None: nothing is promised."""

    def initial(self, batch: int) -> Tensor:
        """(batch, S): the state before anything was seen."""
        raise NotImplementedError

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        """Posterior state (B, S) after a real step.

        Args:
            state: (B, S) at t-1. action: (B, A), a_{t-1}. obs: o_t, name -> (B, H, W, C) uint8 or (B, N).
            is_first: (B,) bool; where set, `state` and `action` are ignored.
        """
        raise NotImplementedError

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        """One dreamed step from `state` (B, S) under `action` (B, A).

        A world whose reward and continue follow from the state alone implements `advance` and `outcome` instead:
        `dream` then predicts the outcomes of all steps in one batch, a third of the time of a dream on CPU.
        """
        following = self.advance(state, action)
        return Step(following, *self.outcome(following))

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """The state (B, S) that `imagine` returns."""
        raise NotImplementedError

    def tempered(self, temperature: float) -> WorldModel:
        """This world, its dreams sampled at `temperature`. Raises UsageError where that is impossible."""
        from worldmodel.models.wrappers import Temperature

        return Temperature(self, temperature)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """(reward (...), cont (...)) on arriving at `state` (..., S)."""
        raise NotImplementedError

    def features(self, state: Tensor) -> Tensor:
        """(..., S) -> (..., F): what policies, critics and heads see."""
        raise NotImplementedError

    def decode(self, state: Tensor) -> Tensor | None:
        """The picture (B, C, H, W) in [0, 1] that belongs to `state` (B, S); None for a world without images."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(loss (), metrics name -> (), posterior states (T, B, S), detached: the starts of imagination)."""
        raise NotImplementedError


def dream(world: WorldModel, start: Tensor, act: Callable[[Tensor], Tensor] | Tensor, horizon: int) -> Dream:
    """Imagines `horizon` steps from every start. Gradients flow unless the caller is in `torch.no_grad`.

        state    s_0       s_1       ...      s_H
        action       a_0       a_1   ...             a_t = act(features(s_t)), or row t of a fixed plan
        reward             r_1       ...      r_H

    Args:
        start: (B, S). act: features (B, F) -> action (B, A), or a plan (horizon, B, A).

    Raises ValueError when a plan is not `horizon` steps of B actions.
    """
    if isinstance(act, Tensor) and act.shape[:2] != (horizon, len(start)):
        raise ValueError(f"a plan must be (horizon, B, A) = ({horizon}, {len(start)}, A), not {tuple(act.shape)}")
    together = type(world).imagine is WorldModel.imagine
    states, actions, outcomes = [start], [], []
    for t in range(horizon):
        action = act[t] if isinstance(act, Tensor) else act(world.features(states[-1]))
        if together:
            states.append(world.advance(states[-1], action))
        else:
            step = world.imagine(states[-1], action)
            states.append(step.state)
            outcomes.append((step.reward, step.cont))
        actions.append(action)
    seen = torch.stack(states)
    if together:
        return Dream(seen, torch.stack(actions), *world.outcome(seen[1:]))
    rewards, conts = zip(*outcomes, strict=True)
    return Dream(seen, torch.stack(actions), torch.stack(rewards), torch.stack(conts))
