"""Truth beside dream: what really happened, what the model saw of it, and what it dreamed under the same actions.

Time line of a recording, or of a window of it (whose step i is the episode's step start + i); here context C = 3 and
horizon H = 3:

    obs_0     obs_1     obs_2     obs_3     obs_4     obs_5        the true pictures
    act_0     act_1     act_2     act_3     act_4     (unused)     act_t is taken AT obs_t
       \\        \\         \\         \\         \\
        rew_1     rew_2     rew_3     rew_4     rew_5              rew_t is paid on ARRIVING at obs_t; rew_0 = 0

    post_0 -> post_1 -> post_2 -> post_3 -> post_4 -> post_5       post_t = observe(post_t-1, act_t-1, obs_t)
                          |
                          +----> dream_3 > dream_4 > dream_5       dream_t = imagine(dream_t-1, act_t-1): no obs_t
                                 k = 1     k = 2     k = 3         k: imagined steps since the last true picture

The dream starts from post_{C-1} and consumes act_{C-1}, ..., act_{C+H-2}; its k-th state is compared with obs_{C-1+k},
its k-th reward with rew_{C-1+k}. Before C both predicted rewards are one step ahead: imagine(post_t-1, act_t-1).reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.errors import UsageError
from worldmodel.eval.recording import Recording
from worldmodel.models.base import WorldModel, dream
from worldmodel.randomness import RowNoise, generator, local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent


@dataclass(frozen=True)
class OpenLoop:
    """One window of W = context + horizon steps; index i is episode step start + i."""

    truth: np.ndarray
    """(W, height, width, C) uint8: what really happened."""
    reconstruction: np.ndarray
    """(W, height, width, C) float32 in [0, 1]: the decoded posterior, which has seen every true picture up to i."""
    dream: np.ndarray
    """The same shape: equal to `reconstruction` for i < context, then imagined under the true actions alone."""
    actions: np.ndarray
    """(W, A) float32: the action taken at i (one-hot where discrete)."""
    reward_paid: np.ndarray
    """(W,) float32: really received on arriving at i."""
    reward_posterior: np.ndarray
    """(W,) float32: predicted one step ahead, from the posterior at i - 1. NaN at 0: nothing came before."""
    reward_dream: np.ndarray
    """(W,) float32: equal to `reward_posterior` for i < context, then predicted in the dream."""
    cont_posterior: np.ndarray
    """(W,) float32: predicted probability that the episode goes on after i, one step ahead. NaN at 0."""
    cont_dream: np.ndarray
    """(W,) float32: the same, equal to `cont_posterior` for i < context, then predicted in the dream."""
    terminal: np.ndarray
    """(W,) bool: whether the episode really ended by termination at i."""
    start: int
    context: int
    discrete: bool = False
    """Whether actions are one-hot."""
    step_seconds: float | None = None
    """Simulated seconds of one agent step, where known."""
    action_names: tuple[str, ...] = ()
    """Of the action's dimensions, where known."""

    @property
    def horizon(self) -> int:
        """Imagined steps."""
        return len(self.truth) - self.context

    def imagined(self, i: int) -> int:
        """How many steps before i the dream last saw the truth; 0 within the context."""
        return max(0, i - self.context + 1)


def open_loop(
    agent: Agent, episode: Recording, start: int = 0, context: int = 10, horizon: int = 50, *, seed: int = 0
) -> OpenLoop:
    """The window of `episode` from step `start`: filtered for `context` steps, then dreamed for `horizon` steps.

    The memory is that of an agent which has driven the episode up to there: filtering begins at the episode's first
    step. The world draws its noise as it always does (one sample of the future, not its mean), from a stream of the
    window's own: `seed`, the episode's seed and `start`. Raises UsageError for a window outside of the episode or a
    world that cannot draw pictures.
    """
    return open_loops(agent, [(episode, start)], context, horizon, seed=seed)[0]


def open_loops(
    agent: Agent, windows: Sequence[tuple[Recording, int]], context: int = 10, horizon: int = 50, *, seed: int = 0
) -> list[OpenLoop]:
    """`open_loop` for many (episode, start) windows at once, as one batch."""
    if not windows:
        raise UsageError("no windows to dream from")
    pieces = [_cut(episode, start, context, horizon) for episode, start in windows]
    device = device_of(agent.world)
    obs = {name: _batch([p.obs[name] for p in pieces], device) for name in pieces[0].obs}
    actions = _batch([p.actions for p in pieces], device)
    streams = [generator(seed, episode.seed or 0, start) for episode, start in windows]
    with torch.no_grad(), local_randomness(seed, device):
        pasts = []
        for (episode, start), stream in zip(windows, streams, strict=True):
            with RowNoise([stream]):
                pasts.append(_remember(agent.world, episode, start, device))
    memory = Memory(*(torch.cat(parts) for parts in zip(*pasts, strict=True)))
    with torch.no_grad(), local_randomness(seed, device), RowNoise(streams):
        states, rewards, conts = posterior(agent.world, obs, actions, memory)
        dreamed = dream(agent.world, states[context - 1], actions[context - 1 : context - 1 + horizon], horizon)
        seen = pictures(agent.world, states)
        imagined = torch.cat([seen[:context], pictures(agent.world, dreamed.states[1:])])
    reward_dream = torch.cat([rewards[:context], dreamed.rewards.float()])
    cont_dream = torch.cat([conts[:context], dreamed.conts.float()])
    seen, imagined, rewards, reward_dream, conts, cont_dream = (
        x.float().cpu().numpy() for x in (seen, imagined, rewards, reward_dream, conts, cont_dream)
    )
    return [
        OpenLoop(
            piece.image, seen[:, b], imagined[:, b], piece.actions, piece.rewards, rewards[:, b], reward_dream[:, b],
            conts[:, b], cont_dream[:, b], piece.is_terminal, start, context, piece.discrete, piece.step_seconds,
            piece.action_names,
        )
        for b, (piece, (_, start)) in enumerate(zip(pieces, windows, strict=True))
    ]  # fmt: skip


class Memory(NamedTuple):
    """What an agent knows when a window begins."""

    state: Tensor
    """(B, S): filtered state of the step before."""
    action: Tensor
    """(B, A): the action taken there."""
    is_first: Tensor
    """(B,) bool: nothing came before, the window begins with its episode."""


def posterior(
    world: WorldModel, obs: dict[str, Tensor], actions: Tensor, memory: Memory | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Filters W true steps, from an empty memory unless one is given: states (W, B, S), and the rewards and conts
    (W, B) that the prior predicted one step ahead, NaN at step 0. obs: name -> (W, B, ...), actions (W, B, A), act_t
    taken at obs_t."""
    length, batch = actions.shape[:2]
    memory = memory or _nothing(world, batch, actions.shape[-1], actions.device)
    state, action, is_first = memory
    unknown = torch.full((batch,), float("nan"), device=actions.device)
    states, rewards, conts = [], [unknown], [unknown]
    for t in range(length):
        if t > 0:
            action, is_first = actions[t - 1], torch.zeros_like(is_first)
            step = world.imagine(state, action)
            rewards.append(step.reward.float())
            conts.append(step.cont.float())
        state = world.observe(state, action, {name: value[t] for name, value in obs.items()}, is_first)
        states.append(state)
    return torch.stack(states), torch.stack(rewards), torch.stack(conts)


def _nothing(world: WorldModel, batch: int, actions: int, device: torch.device) -> Memory:
    first = torch.ones(batch, dtype=torch.bool, device=device)
    return Memory(world.initial(batch), torch.zeros(batch, actions, device=device), first)


def _remember(world: WorldModel, episode: Recording, start: int, device: torch.device) -> Memory:
    """The memory (B = 1) of all that came before step `start` in its episode."""
    firsts = np.flatnonzero(episode.is_first[: start + 1])
    begin = int(firsts[-1]) if len(firsts) else 0
    if begin == start:
        return _nothing(world, 1, episode.actions.shape[-1], device)
    past = episode[begin:start]
    obs = {name: _batch([value], device) for name, value in past.obs.items()}
    actions = _batch([past.actions], device)
    state = posterior(world, obs, actions)[0][-1]
    return Memory(state, actions[-1], torch.zeros(1, dtype=torch.bool, device=device))


def pictures(world: WorldModel, states: Tensor) -> Tensor:
    """(T, B, S) -> decoded (T, B, height, width, C) in [0, 1]. Raises UsageError for a world without a decoder."""
    decoded = world.decode(states.flatten(0, 1))
    if decoded is None:
        raise UsageError(f"{type(world).__name__} cannot draw its dreams: it has no image decoder; "
                         "only agents trained on image observations can be watched")  # fmt: skip
    return decoded.clamp(0, 1).permute(0, 2, 3, 1).unflatten(0, states.shape[:2])


def device_of(world: WorldModel) -> torch.device:
    """Where the world's weights lie (cpu for a world without any)."""
    return next((p.device for p in world.parameters()), torch.device("cpu"))


def _cut(episode: Recording, start: int, context: int, horizon: int) -> Recording:
    if context < 1 or horizon < 1 or start < 0:
        raise UsageError(f"start must be >= 0, context and horizon >= 1; got {start}, {context}, {horizon}")
    if start + context + horizon > len(episode):
        raise UsageError(
            f"a window of {context} + {horizon} steps from step {start} needs {start + context + horizon} steps, "
            f"but the episode has {len(episode)}; start earlier or shorten the horizon"
        )
    piece = episode[start : start + context + horizon]
    if piece.is_first[1:].any():
        raise UsageError(f"the window from step {start} runs into another episode at step "
                         f"{start + 1 + int(np.argmax(piece.is_first[1:]))}")  # fmt: skip
    return piece


def _batch(values: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(values, axis=1)).to(device)
