"""A policy from nothing but the dreams of a world that learns no more, as in World Models (Ha and Schmidhuber 2018).

A run may try such policies in its second half, and at its end. They carry nothing of what its own policy learned when
the world was young (the primacy bias: Nikishin et al. 2022, arXiv 2205.07802).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.agent import Agent, build_policy
from worldmodel.config import Config
from worldmodel.envs import Spaces
from worldmodel.errors import UsageError
from worldmodel.models.base import WorldModel
from worldmodel.optim import Average, LaProp, decayed
from worldmodel.policies.actor_critic import ActorCritic, Lesson
from worldmodel.policies.base import Policy
from worldmodel.policies.committee import Committee
from worldmodel.policies.evolution import Controller
from worldmodel.randomness import generator, local_randomness
from worldmodel.replay import Replay
from worldmodel.train.dreamer import learn_in_dream
from worldmodel.train.hindsight import look_back
from worldmodel.train.world_models import evolve_in_dream, search_of

FROM, FROM_EACH = 12_800, 64
"""From how many states the dreams begin that teach the fresh policy of a run, and from how many of one episode."""

Note = Callable[[int, dict[str, Tensor]], None]
Some = Callable[[int], Tensor]
"""So many starts, drawn with replacement."""


def policy_in(world: WorldModel, spaces: Spaces, config: Config, seed: int) -> Policy:
    """An untrained policy for `world`, where the world lies; `config.precision` resolved."""
    device = world.initial(1).device
    with local_randomness(seed, device):
        made = build_policy(config, world, spaces, _precision(config))
    return made.to(device)


def learn_policy(
    world: WorldModel, spaces: Spaces, starts: Tensor, config: Config, updates: int, seed: int = 0,
    note: Note = lambda update, metrics: None,
) -> Policy:  # fmt: skip
    """A fresh actor-critic, or a committee of them, after `updates` updates in dreams of `world`, which is only read;
    where `config.policy.kind` is evolution, a controller after as many generations.

    All as in a training run (`train/dreamer.py`) whose budget is `updates`: optimiser, decay of its rate, moving
    discount and entropy bonus, averaged weights. Left out is what needs reality: the replay value loss.
    `config.policy.temperature` is that of the dreams. The same seed, the same weights and starts at any temperature;
    no global generator is moved.

    Args:
        starts: posterior states (N, S), of which every update draws `config.policy.starts` for each member, with
            replacement (where that is 0, as many as a batch of the replay holds), every generation
            `config.evolution.starts`. note: told the metrics of every update, from 1 on.

    Returns the policy with averaged weights; of a search, its mean. Raises UsageError without a start, or for a
    temperature that the world cannot dream at.
    """
    if not len(starts):
        raise UsageError("no states to start dreams from")
    c = config.policy
    dreamed = world if c.temperature == 1 else world.tempered(c.temperature)
    policy, draw = policy_in(world, spaces, config, seed), generator(seed)
    teach = _evolve if c.kind == "evolution" else _learn

    def some(count: int) -> Tensor:
        return starts[torch.randint(len(starts), (count,), generator=draw).to(starts.device)].float()

    with local_randomness(generator(seed, 1).initial_seed(), starts.device):  # not the numbers of the first weights
        return teach(dreamed, policy, some, config, updates, note)


def _learn(
    dreamed: WorldModel, policy: ActorCritic | Committee, some: Some, config: Config, updates: int, note: Note
) -> Policy:
    o, c = config.optim, config.policy
    optimizer = LaProp.of([p for p in policy.parameters() if p.requires_grad], o.policy_lr, o)
    average = Average({"policy": policy}, o.average)
    count = c.starts or config.replay.batch * config.replay.length
    for update in range(updates):
        progress = update / updates
        optimizer.zero_grad()
        metrics = learn_in_dream(dreamed, policy, some(count * c.members), progress)
        optimizer.step(decayed(progress, o.decay, o.final))
        policy.update_slow()
        average.update()
        note(update + 1, metrics)
    return average.into("policy", policy) if o.average else policy


def _evolve(
    dreamed: WorldModel, policy: Controller, some: Some, config: Config, generations: int, note: Note
) -> Policy:
    e, search = config.evolution, search_of(len(policy.vector()), config.evolution)
    for generation in range(generations):
        told = evolve_in_dream(dreamed, search, some(e.starts), e.horizon, policy.discrete, _precision(config))
        note(generation + 1, {f"evolution/{name}": value for name, value in told.items()})
    policy.load_vector(search.state["mean"])
    return policy


def _precision(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def fresh_agent(agent: Agent, replay: Replay, members: int, seed: int, note: Note) -> Agent | None:
    """The world of `agent`, and a policy of so many `members` that learned in its dreams alone, which begin where the
    newest episodes of `replay` were; None where it remembers no whole one. `agent` stays as it is."""
    seen, c = look_back(agent, replay, FROM, FROM_EACH), agent.config
    if seen is None:
        return None
    made = agent.fork()
    made.config = replace(c, policy=replace(c.policy, members=members))
    made.policy = learn_policy(made.world, made.spaces, seen.states, made.config, c.relearn, c.seed + seed, note)
    evolved = c.policy.kind == "evolution"
    told = f"CMA-ES), {c.relearn} generations" if evolved else f"actor-critics: {members}), {c.relearn} updates"
    made.card = {
        "learning": f"a fresh policy ({told} in dreams of this run's world, "
        "frozen; no replay value loss; the world learned from what the run has lived",
        "discount": Lesson.at(1.0, c.policy).discount,
    }
    return made


def renewals_due(config: Config, done: float) -> int:
    """How many fresh policies should have been tried when the share `done` (0 to 1) of the budget is used up, the last
    one not counted, which comes when all is: their moments are spread evenly over the second half."""
    if not config.relearn:
        return 0
    return min(config.relearn_times - 1, int(max(0.0, 2 * done - 1) * config.relearn_times + 1e-9))
