"""The newest real episodes, filtered once more by the weights of today: where dreams begin, and what they should pay.

replay     ... | x x x x x x x | x x x x x x x x x | x x x
                 an episode      an episode          the running one
kept             *     *     *   *     *     *       *
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.agent import Agent
from worldmodel.envs.starts import Starts, spread
from worldmodel.models.base import dream
from worldmodel.randomness import RowNoise, generator, local_randomness
from worldmodel.replay import Replay
from worldmodel.returns import discount_weights

COUNT, PER_EPISODE = 256, 16
"""How many states are kept, and how many at most of one episode."""

LONGEST = 1000
"""Steps of an episode beyond these are not looked at: filtering costs a forward pass for every one of them."""


@dataclass(frozen=True)
class Hindsight:
    """N posterior states of the newest episodes."""

    states: Tensor
    """(N, S) float32"""
    index: np.ndarray
    """(N,) global index of their steps in the replay"""
    step: np.ndarray
    """(N,) step of their episode"""
    age: np.ndarray
    """(N,) how many episodes ago; 0 is the newest"""
    left: np.ndarray
    """(N,) steps that followed in the episode, as far as they are known"""

    def starts(self, newest: int) -> Starts:
        """As they are packaged with an agent; `newest` is the seed of the newest episode, each older one has 1 less."""
        rows = zip(self.states, self.age.tolist(), self.step.tolist(), strict=True)
        return Starts.of([(state, newest - age, step) for state, age, step in rows])


@torch.no_grad()
def look_back(agent: Agent, replay: Replay, count: float = COUNT, per_episode: int = PER_EPISODE) -> Hindsight | None:
    """About `count` posterior states, `per_episode` spread evenly over each of the newest episodes that are whole from
    their first step on; None while there is none. With a `count` of infinity all episodes are looked at.

    The states that the replay remembers were filtered by older weights; these are filtered anew, all episodes as one
    batch, for 2 to 3 s (16 CarRacing episodes, a core). The agent's own state and all randomness stay as they are.
    """
    episodes = _newest(replay, count, per_episode)
    if not episodes:
        return None
    begins = np.array([begin for begin, _, _, _ in episodes])
    world, size = agent.world, len(episodes)
    state = world.initial(size)
    action = torch.zeros(size, agent.spaces.actions, device=state.device)
    kept: dict[tuple[int, int], Tensor] = {}
    noise = RowNoise([generator(int(begin)) for begin in begins])
    with local_randomness(0, state.device), noise:
        for t in range(1 + max(max(steps) for _, _, _, steps in episodes)):
            rows = np.minimum(begins + t, replay.total - 1) % replay.capacity
            obs = {name: _tensor(replay.data[f"obs.{name}"][rows], state.device) for name in agent.spaces.observations}
            is_first = torch.full((size,), t == 0, device=state.device)
            state = world.observe(state, action, obs, is_first)
            action = _tensor(replay.data["action"][rows], state.device)
            kept |= {(row, t): state[row].float() for row, (_, _, _, steps) in enumerate(episodes) if t in steps}
    places = [(row, t) for row, (_, _, _, steps) in enumerate(episodes) for t in steps]
    begin, end, age = (np.array([episodes[row][i] for row, _ in places]) for i in range(3))
    step = np.array([t for _, t in places])
    return Hindsight(torch.stack([kept[p] for p in places]), begin + step, step, age, end - begin - step - 1)


@torch.no_grad()
def quick_gap(agent: Agent, replay: Replay, seen: Hindsight, horizon: int) -> dict[str, float]:
    """Dreamed against real return over the same `horizon` agent steps from the same moments; empty without any.

    Reality is what the acting policy was paid, sampled actions, or its likeliest and slips once only the world learns;
    the dream is the policy of `agent`, sampled.
    The full comparison, in which reality is played on from the very same policy, is `worldmodel gap`.

    Returns: `dream_return` and `real_return`, undiscounted means over the moments (after an end reality pays nothing,
    and the dream as far as it did not expect that); their `difference` and `reward_ratio`; how many `moments`.
    """
    ended = replay.data["is_terminal"][(seen.index + seen.left) % replay.capacity]
    chosen = np.flatnonzero((seen.left >= horizon) | ended)  # a time limit leaves unknown what would have come
    if not len(chosen):
        return {}
    with local_randomness(0, seen.states.device):
        told = dream(agent.world, seen.states[chosen], lambda features: agent.policy.act(features), horizon)
    dreamed = float((discount_weights(told.conts) * told.rewards).sum(0).mean())
    later = np.arange(1, horizon + 1)[:, None]
    paid = replay.data["reward"][(seen.index[chosen] + later) % replay.capacity]
    real = float(np.where(later <= seen.left[chosen], paid, 0).sum(0, dtype=np.float64).mean())
    out = {"dream_return": dreamed, "real_return": real, "difference": dreamed - real, "moments": len(chosen)}
    return out | ({"reward_ratio": dreamed / real} if real else {})


def _newest(replay: Replay, most: float, per_episode: int) -> list[tuple[int, int, int, list[int]]]:
    """(global index of its first step, of its end, how many episodes ago, steps to keep) of the newest episodes."""
    oldest = replay.total - len(replay)
    firsts = oldest + replay.rows(oldest, replay.total, ["is_first"])["is_first"].nonzero()[0]
    found: list[tuple[int, int, int, list[int]]] = []
    count, end = 0, replay.total
    for age, begin in enumerate(int(first) for first in firsts[::-1]):
        # The last step of an episode is not a start: nothing follows it. The newest may lack it, and loses one step.
        steps = spread(min(end - begin - 1, LONGEST), per_episode)
        if steps:
            found.append((begin, end, age, steps))
            count += len(steps)
        end = begin
        if count >= most:
            break
    return found


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)
