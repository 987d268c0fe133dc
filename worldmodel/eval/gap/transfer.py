"""What the dream promises the policy, and what reality pays it: same start, same horizon, same action mode.

    J_D       the policy dreams H steps from the posterior state s_0        actions a^D
    J_post    reward and continue heads on the posterior of the real frames that follow when reality is forked at the
              start and a^D is replayed there
    J_replay  what reality paid for a^D
    J_R       what reality paid the policy, which saw every frame: the episode as it went on from the start

    J_D - J_R  =  (J_D - J_post)  +  (J_post - J_replay)  +  (J_replay - J_R)
                     dynamics          reward head             feedback

All returns are undiscounted sums over H agent steps without bootstrap. The first two are weighted by the predicted
probability of getting there: w_1 = 1, w_{k+1} = w_k * cont_k, so that the reward of arriving at an end still counts;
the last two stop where reality ended, and J_post has no frames beyond that: what a dream still promises after a
real end is the dynamics' mistake. The first two terms together are the phantom part, which a policy can exploit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.eval.gap.forks import Fork, Start, fork
from worldmodel.eval.openloop import Memory, device_of, posterior
from worldmodel.models.base import Dream, WorldModel, dream
from worldmodel.randomness import RowNoise, generator, local_randomness
from worldmodel.returns import discount_weights

if TYPE_CHECKING:
    from worldmodel.agent import Agent


@dataclass(frozen=True)
class Transfer:
    """Paired returns from B starts over H agent steps; arrays are float64."""

    starts: tuple[Start, ...]
    horizon: int
    dream: np.ndarray
    """(B,) J_D"""
    posterior: np.ndarray
    """(B,) J_post"""
    replay: np.ndarray
    """(B,) J_replay"""
    real: np.ndarray
    """(B,) J_R"""
    random: np.ndarray
    """(B,) what reality paid for uniformly random actions from the same starts."""
    random_dream: np.ndarray
    """(B,) what the dream promised for the same random actions."""
    dreamed_rewards: np.ndarray
    """(H, B) weighted, under a^D: they sum to J_D."""
    replayed_rewards: np.ndarray
    """(H, B) real, under a^D: they sum to J_replay."""
    lived_rewards: np.ndarray
    """(H, B) real, under the policy's own real actions a^R: they sum to J_R."""
    redreamed_rewards: np.ndarray
    """(H, B) weighted, what the dream pays for a^R, up to the real end: the mirror image of the replay."""
    ended: np.ndarray
    """(B,) bool: reality ended within H steps of a^D."""
    value: np.ndarray | None
    """(B,) the critic at the starts; None without one."""
    value_dream: np.ndarray | None
    """(B,) discounted return of the dream, with the critic at its last state."""

    @property
    def gap(self) -> np.ndarray:
        """(B,) J_D - J_R."""
        return self.dream - self.real

    @property
    def dynamics(self) -> np.ndarray:
        """(B,)"""
        return self.dream - self.posterior

    @property
    def reward_head(self) -> np.ndarray:
        """(B,)"""
        return self.posterior - self.replay

    @property
    def feedback(self) -> np.ndarray:
        """(B,)"""
        return self.replay - self.real

    @property
    def clusters(self) -> list[int]:
        """(B,) the episode of each start."""
        return [start.seed for start in self.starts]


def transfer(
    agent: Agent, starts: Sequence[Start], horizon: int, env: gym.Env, *, sample: bool = False, seed: int = 0
) -> Transfer:
    """Measures all starts, as one batch. `env`: the agent's own, wrapped; it is reset. `sample` must be the mode
    in which the episodes of the starts were driven. Noise comes from `seed`, the episode and the step alone."""
    act = mode_of(agent, sample)
    dreamed = dream_from(agent, agent.world, starts, horizon, act, seed)
    forks = [fork(env, start, plan) for start, plan in zip(starts, rows(dreamed.actions), strict=True)]
    again = dream_from(agent, agent.world, starts, horizon, real_plans(starts, horizon), seed)
    paid = [start.lived.rewards[start.t + 1 :][:horizon] for start in starts]
    lived = np.stack([np.pad(rewards, (0, horizon - len(rewards))) for rewards in paid], 1)
    lasted = np.arange(horizon)[:, None] < [s.lived.length - s.t for s in starts]
    shaken = random_plans(agent, starts, horizon, seed)
    shaken_dream = dream_from(agent, agent.world, starts, horizon, shaken, seed)
    shaken_forks = [fork(env, start, plan) for start, plan in zip(starts, rows(shaken), strict=True)]
    weighted = weigh(dreamed.rewards, dreamed.conts)
    value, value_dream = _values(agent, dreamed)
    return Transfer(
        starts=tuple(starts), horizon=horizon, dream=weighted.sum(0),
        posterior=posterior_returns(agent.world, starts, dreamed.actions, forks, seed),
        replay=np.array([f.rewards.sum() for f in forks]),
        real=np.array([start.lived.paid(start.t, horizon) for start in starts]),
        random=np.array([f.rewards.sum() for f in shaken_forks]),
        random_dream=weigh(shaken_dream.rewards, shaken_dream.conts).sum(0),
        dreamed_rewards=weighted, replayed_rewards=np.stack([f.padded(horizon) for f in forks], 1),
        lived_rewards=lived, redreamed_rewards=np.where(lasted, weigh(again.rewards, again.conts), 0.0),
        ended=np.array([len(f.rewards) < horizon or f.terminated for f in forks]), value=value, value_dream=value_dream,
    )  # fmt: skip


def mode_of(agent: Agent, sample: bool) -> Callable[[Tensor], Tensor]:
    """The policy as `dream` wants it: features -> the actions that `Agent.step` would send to the environment."""

    def act(features: Tensor) -> Tensor:
        action = agent.policy.act(features, sample)
        return action if agent.spaces.discrete else action.clamp(-1, 1)

    return act


def dream_from(
    agent: Agent, world: WorldModel, starts: Sequence[Start], horizon: int,
    act: Callable[[Tensor], Tensor] | Tensor, seed: int,
) -> Dream:  # fmt: skip
    """`dream` from the posterior states of the starts, each with a noise stream of its own."""
    device = device_of(agent.world)
    states = torch.from_numpy(np.stack([start.state for start in starts])).to(device)
    act = act.to(device) if isinstance(act, Tensor) else act
    with torch.no_grad(), local_randomness(seed, device), RowNoise(streams(starts, seed)):
        return dream(world, states, act, horizon)


def streams(starts: Sequence[Start], seed: int) -> list[torch.Generator]:
    """One generator a start, the same whoever shares its batch: common random numbers for whatever is compared."""
    return [generator(seed, start.seed, start.t) for start in starts]


def real_plans(starts: Sequence[Start], horizon: int) -> Tensor:
    """(H, B, A): what was really done from each start; zeros beyond the end of the episode, where nothing counts."""
    plans = np.zeros((horizon, len(starts), starts[0].lived.recording.actions.shape[-1]), np.float32)
    for b, start in enumerate(starts):
        done = start.lived.recording.actions[start.t : start.lived.length][:horizon]
        plans[: len(done), b] = done
    return torch.from_numpy(plans)


def random_plans(agent: Agent, starts: Sequence[Start], horizon: int, seed: int) -> Tensor:
    """(H, B, A): uniform in [-1, 1], or uniformly chosen one-hot."""
    spaces, plans = agent.spaces, []
    for start in starts:
        rng = np.random.default_rng([seed, start.seed, start.t])
        if spaces.discrete:
            plans.append(np.eye(spaces.actions, dtype=np.float32)[rng.integers(spaces.actions, size=horizon)])
        else:
            plans.append(rng.uniform(-1, 1, (horizon, spaces.actions)).astype(np.float32))
    return torch.from_numpy(np.stack(plans, 1))


def rows(plan: Tensor) -> list[np.ndarray]:
    """(H, B, A) -> B plans (H, A)."""
    return list(plan.float().cpu().numpy().swapaxes(0, 1))


def weigh(rewards: Tensor, conts: Tensor) -> np.ndarray:
    """(H, B) float64: every reward times the predicted probability of getting that far."""
    return (rewards.double() * discount_weights(conts.double())).cpu().numpy()


def posterior_returns(
    world: WorldModel, starts: Sequence[Start], actions: Tensor, forks: Sequence[Fork], seed: int
) -> np.ndarray:
    """(B,) J_post: the real frames of every fork are filtered on from its start, and the heads read the posterior.

        frame                  o_1       o_2     ...  o_K          K <= H real frames
        posterior    s_0  ->   s_1  ->   s_2  -> ...  s_K          s_k = observe(s_{k-1}, a_{k-1}, o_k)
        reward                 r(s_1)    r(s_2)  ...  r(s_K)

    A world without `outcome` (its reward needs the action) predicts it one step ahead, by imagine(s_{k-1}, a_{k-1}):
    its reward-head term then holds one step of dynamics.
    """
    horizon, device = len(actions), actions.device
    steps = np.array([len(f.rewards) for f in forks])
    index = np.minimum(np.arange(horizon)[:, None], steps - 1)  # padded with the last frame; not counted
    obs = {
        name: torch.from_numpy(np.stack([f.obs[name][index[:, b]] for b, f in enumerate(forks)], 1)).to(device)
        for name in forks[0].obs
    }
    states = torch.from_numpy(np.stack([start.state for start in starts])).to(device)
    memory = Memory(states, actions[0], torch.zeros(len(starts), dtype=torch.bool, device=device))
    following = torch.cat([actions[1:], actions[-1:]])  # row k of `posterior`'s actions is taken at its frame k
    with torch.no_grad(), local_randomness(seed, device), RowNoise(streams(starts, seed)):
        first = world.imagine(states, actions[0])
        filtered, rewards, conts = posterior(world, obs, following, memory)
        rewards, conts = rewards.clone(), conts.clone()
        rewards[0], conts[0] = first.reward, first.cont
        with contextlib.suppress(NotImplementedError):
            rewards, conts = world.outcome(filtered)
    counted = np.arange(horizon)[:, None] < steps
    return np.where(counted, weigh(rewards, conts), 0.0).sum(0)


def _values(agent: Agent, dreamed: Dream) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The critic at the starts, and the discounted return of the dream that it bootstraps."""
    if not hasattr(agent.policy, "value"):
        return None, None
    gamma, horizon = agent.discount, len(dreamed.rewards)
    with torch.no_grad():
        first, last = (agent.policy.value(agent.world.features(dreamed.states[t])).double() for t in (0, -1))
    powers = gamma ** torch.arange(horizon + 1, dtype=torch.float64, device=first.device)
    alive = dreamed.conts.double().prod(0)
    weights = discount_weights(dreamed.conts.double())
    total = (dreamed.rewards.double() * weights * powers[:-1, None]).sum(0) + powers[-1] * alive * last
    return first.cpu().numpy(), total.cpu().numpy()
