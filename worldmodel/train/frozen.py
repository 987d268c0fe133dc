"""A policy from nothing but the dreams of a world that learns no more, as in World Models (Ha and Schmidhuber 2018).

A run may try such policies in its second half, and at its end. They carry nothing of what its own policy learned when
the world was young (the primacy bias: Nikishin et al. 2022, arXiv 2205.07802).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.agent import Agent
from worldmodel.config import Config
from worldmodel.envs import Spaces
from worldmodel.errors import UsageError
from worldmodel.models.base import WorldModel
from worldmodel.optim import Average, LaProp, decayed
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.policies.committee import Committee, actor_critic
from worldmodel.randomness import generator, local_randomness
from worldmodel.replay import Replay
from worldmodel.train.dreamer import learn_in_dream
from worldmodel.train.hindsight import look_back

FROM, FROM_EACH = 12_800, 64
"""From how many states the dreams begin that teach the fresh policy of a run, and from how many of one episode."""

Note = Callable[[int, dict[str, Tensor]], None]


def policy_in(world: WorldModel, spaces: Spaces, config: Config, seed: int) -> ActorCritic | Committee:
    """An untrained policy for `world`, where the world lies; `config.precision` resolved."""
    start = world.initial(1)
    precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    with local_randomness(seed, start.device):
        features = world.features(start).shape[-1]
        made = actor_critic(features, spaces.actions, spaces.discrete, config.policy, precision)
    return made.to(start.device)


def learn_policy(
    world: WorldModel, spaces: Spaces, starts: Tensor, config: Config, updates: int, seed: int = 0,
    note: Note = lambda update, metrics: None,
) -> ActorCritic | Committee:  # fmt: skip
    """A fresh actor-critic, or a committee of them, after `updates` updates in dreams of `world`, which is only read.

    All as in a training run (`train/dreamer.py`) whose budget is `updates`: optimiser, decay of its rate, moving
    discount and entropy bonus, averaged weights. Left out is what needs reality: the replay value loss.
    `config.policy.temperature` is that of the dreams. The same seed, the same weights and starts at any temperature;
    no global generator is moved.

    Args:
        starts: posterior states (N, S), of which every update draws `config.policy.starts` for each member, with
            replacement (where that is 0, as many as a batch of the replay holds). note: told the metrics of every
            update, from 1 on.

    Returns the policy with averaged weights. Raises UsageError without a start, or for a temperature that the world
    cannot dream at.
    """
    if not len(starts):
        raise UsageError("no states to start dreams from")
    o, c = config.optim, config.policy
    dreamed = world if c.temperature == 1 else world.tempered(c.temperature)
    policy = policy_in(world, spaces, config, seed)
    optimizer = LaProp.of([p for p in policy.parameters() if p.requires_grad], o.policy_lr, o)
    average = Average({"policy": policy}, o.average)
    count, chance = c.starts or config.replay.batch * config.replay.length, generator(seed)
    with local_randomness(generator(seed, 1).initial_seed(), starts.device):  # not the numbers of the first weights
        for update in range(updates):
            progress = update / updates
            chosen = torch.randint(len(starts), (count * c.members,), generator=chance).to(starts.device)
            optimizer.zero_grad()
            metrics = learn_in_dream(dreamed, policy, starts[chosen].float(), progress)
            optimizer.step(decayed(progress, o.decay, o.final))
            policy.update_slow()
            average.update()
            note(update + 1, metrics)
    return average.into("policy", policy) if o.average else policy


def fresh_agent(
    agent: Agent, replay: Replay, members: int, seed: int, note: Note, world: str = "this run's world"
) -> Agent | None:
    """The world of `agent`, and a policy of so many `members` that learned in its dreams alone, which begin where the
    newest episodes of `replay` were; None where it remembers no whole one. `agent` stays as it is. `world`: what the
    card calls it."""
    seen, c = look_back(agent, replay, FROM, FROM_EACH), agent.config
    if seen is None:
        return None
    made = agent.fork()
    made.config = replace(c, policy=replace(c.policy, members=members))
    made.policy = learn_policy(made.world, made.spaces, seen.states, made.config, c.relearn, c.seed + seed, note)
    made.card = {
        "learning": f"a fresh policy (actor-critics: {members}), {c.relearn} updates in dreams of {world}, "
        "frozen; no replay value loss; the world learned from what the run's own policy lived"
    }
    return made


def renewals_due(config: Config, done: float) -> int:
    """How many fresh policies should have been tried when the share `done` (0 to 1) of the budget is used up, the last
    one not counted, which comes when all is: their moments are spread evenly over the second half."""
    if not config.relearn:
        return 0
    return min(config.relearn_times - 1, int(max(0.0, 2 * done - 1) * config.relearn_times + 1e-9))
