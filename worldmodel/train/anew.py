"""A world from nothing but what a run remembers.

The world that a run ends with was taught its first episodes hundreds of times, when there were no others, and predicts
tracks that it has not seen far worse than those that it has (the primacy bias: Nikishin et al. 2022, arXiv 2205.07802;
figures in docs/experiments.md). A new one, taught all episodes alike and far less often, does not. In CarRacing that
made no better dreams to learn in: 3,000 updates are too few for what a policy needs to see.
"""

from __future__ import annotations

import torch

from worldmodel.agent import Agent, build
from worldmodel.models.base import WorldModel
from worldmodel.optim import Average, LaProp, decayed
from worldmodel.randomness import generator, local_randomness
from worldmodel.replay import Replay
from worldmodel.train.frozen import Note
from worldmodel.train.learner import check_finite


def learn_world(
    agent: Agent, replay: Replay, updates: int, seed: int = 0, note: Note = lambda update, metrics: None
) -> WorldModel:
    """A world of the kind of `agent`'s, after `updates` updates on batches of `replay`, of which only the steps are
    read: states are remembered apart. Averaged weights; optimiser and decay of its rate as in a run whose budget is
    `updates`. No global generator is moved.

    Args:
        note: told the metrics of every update, from 1 on.

    Raises NumericalError naming the loss that is not finite; UsageError when there are too few steps for a batch.
    """
    c, o, device = agent.config, agent.config.optim, agent.device
    precision = torch.bfloat16 if c.precision == "bfloat16" else torch.float32
    with local_randomness(generator(seed).initial_seed(), device):
        world = build(c, agent.spaces, precision).world.to(device)
        memory = replay.afresh(seed)
        optimizer = LaProp.of([p for p in world.parameters() if p.requires_grad], o.world_lr, o)
        average = Average({"world": world}, o.average)
        for update in range(updates):
            batch, index = memory.sample(c.replay.batch, device)
            optimizer.zero_grad()
            loss, metrics, states = world.loss(batch)
            check_finite(metrics)
            loss.backward()
            optimizer.step(decayed(update / updates, o.decay, o.final))
            average.update()
            memory.write_back(index, states)
            note(update + 1, metrics)
    return average.into("world", world) if o.average else world
