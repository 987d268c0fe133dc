"""The starts of dreams that are packaged with an agent: the newest episodes of its run, filtered by its own weights."""

from __future__ import annotations

import numpy as np
import torch

from worldmodel.agent import Agent
from worldmodel.envs.starts import Starts, spread
from worldmodel.randomness import RowNoise, generator, local_randomness
from worldmodel.replay import Replay

COUNT, PER_EPISODE = 256, 16
"""How many states are kept, and how many at most of one episode."""

LONGEST = 1000
"""Steps of an episode beyond these are not looked at: filtering costs a forward pass for every one of them."""


@torch.no_grad()
def starts_of(agent: Agent, replay: Replay, seed: int) -> Starts | None:
    """About `COUNT` posterior states, spread evenly over each of the newest episodes that are whole from their first
    step on; None while there is none.

    The states that the replay remembers were filtered by older weights; these are filtered anew, all episodes as one
    batch, for 2 to 3 s (16 CarRacing episodes, a core). The agent's own state and all randomness stay as they are.

    Args:
        seed: of the newest episode, which may still be under way; the one before has seed - 1, and so on.
    """
    episodes = _newest(replay)
    if not episodes:
        return None
    begins = np.array([begin for begin, _, _ in episodes])
    world, size = agent.world, len(episodes)
    state = world.initial(size)
    action = torch.zeros(size, agent.spaces.actions, device=state.device)
    kept: list[dict[int, torch.Tensor]] = [{} for _ in episodes]
    noise = RowNoise([generator(int(begin)) for begin in begins])
    with local_randomness(0, state.device), noise:
        for t in range(1 + max(max(steps) for _, _, steps in episodes)):
            rows = np.minimum(begins + t, replay.total - 1) % replay.capacity
            obs = {name: _tensor(replay.data[f"obs.{name}"][rows], state.device) for name in agent.spaces.observations}
            is_first = torch.full((size,), t == 0, device=state.device)
            state = world.observe(state, action, obs, is_first)
            action = _tensor(replay.data["action"][rows], state.device)
            for row, (_, _, steps) in enumerate(episodes):
                if t in steps:
                    kept[row][t] = state[row].float().cpu()
    return Starts.of([(kept[row][t], seed - age, t) for row, (_, age, steps) in enumerate(episodes) for t in steps])


def _newest(replay: Replay) -> list[tuple[int, int, list[int]]]:
    """(global index of its first step, how many episodes ago, steps to keep) of the newest episodes."""
    oldest = replay.total - len(replay)
    firsts = oldest + replay.rows(oldest, replay.total, ["is_first"])["is_first"].nonzero()[0]
    found: list[tuple[int, int, list[int]]] = []
    count, end = 0, replay.total
    for age, begin in enumerate(int(first) for first in firsts[::-1]):
        # The last step of an episode is not a start: nothing follows it. The newest may lack it, and loses one step.
        steps = spread(min(end - begin - 1, LONGEST), PER_EPISODE)
        if steps:
            found.append((begin, age, steps))
            count += len(steps)
        end = begin
        if count >= COUNT:
            break
    return found


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)
