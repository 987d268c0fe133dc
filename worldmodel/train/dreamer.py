"""Dreamer: learn the world from what really happened, learn to act in its dreams (arXiv 2301.04104, algorithm box).

repeat
    collect:   act in the real environment, remember                    train/collect.py
    world:     maximise the evidence of replayed sequences              models/rssm.py, train/learner.py
    dream:     imagine `horizon` steps from replayed states             models/base.py
    policy:    lambda-returns of the dream teach actor and critic       policies/actor_critic.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.distributions import correlated_noise
from worldmodel.models.base import Batch, WorldModel, dream
from worldmodel.policies.actor_critic import ActorCritic, Lesson
from worldmodel.policies.committee import Committee
from worldmodel.train.learner import Learner


class Dreamer(Learner):
    """World model, actor-critic and their optimiser, taught one batch at a time."""

    @property
    def learning(self) -> str:
        weight = self.config.policy.replay_value
        if not weight:
            return "actor and critic learn from imagined trajectories only; no replay value loss"
        after = self.config.replay.after
        came = f", of recent episodes with what came up to {after} steps later" if after else ""
        return f"actor: imagined trajectories only; critic: these, and a replay value loss of {weight:g}{came}"

    def _policy_rate(self, progress: float) -> float:
        c = self.config.policy
        return c.dynamics_rate if Lesson.at(progress, c).through else 1.0

    def _teach_policy(self, batch: Batch, states: Tensor, progress: float) -> dict[str, Tensor]:
        start = self._starts(states, batch.is_terminal, progress)
        metrics = learn_in_dream(self.dreamed, self.agent.policy, start, progress)
        if self.config.policy.replay_value:
            metrics["loss/replay_value"] = self._learn_from_replay(states, batch, progress)
        return metrics

    def _moved_by_lessons(self) -> list[Tensor]:
        return list(self.agent.policy.buffers())

    def _stepped(self) -> None:
        self.agent.policy.update_slow()

    def _starts(self, states: Tensor, is_terminal: Tensor, progress: float) -> Tensor:
        """Where dreams begin: states (N, S) of the batch, without those where the episode is over; as many for every
        member of a committee."""
        alive, c = states[~is_terminal], self.config.policy
        starts = (Lesson.at(progress, c).through and c.dynamics_starts) or c.starts
        if not starts:
            return alive.repeat(c.members, 1)
        drawn = [torch.randperm(len(alive), device=alive.device)[:starts] for _ in range(c.members)]
        return alive[torch.cat(drawn)]

    def _learn_from_replay(self, states: Tensor, batch: Batch, progress: float) -> Tensor:
        """Gradients of the critic alone, from the rewards that reality paid; returns the loss ()."""
        features, discount = self.agent.world.features(states), Lesson.at(progress, self.config.policy).discount
        after = batch.after and batch.after._replace(state=self.agent.world.features(batch.after.state))
        loss = self.agent.policy.replay_loss(
            features, batch.reward, batch.is_first, batch.is_terminal, discount=discount, after=after
        )
        (self.config.policy.replay_value * loss).backward()
        return loss.detach()


def _behaviour(policy: ActorCritic | Committee, lesson: Lesson, start: Tensor) -> Callable[[Tensor], Tensor]:
    """The behaviour policy of one dream that begins at `start` (N, S): features (N, F) to actions (N, A)."""
    act, c = functools.partial(policy.act_apart, noise=lesson.noise), policy.config
    if policy.discrete or not c.noise_correlation:
        return act
    like = start.new_empty(len(start), policy.actions)
    drawn = iter(correlated_noise(like, c.horizon, c.noise_correlation))
    return lambda features: act(features, drawn=next(drawn))


def learn_in_dream(
    world: WorldModel, policy: ActorCritic | Committee, start: Tensor, progress: float
) -> dict[str, Tensor]:
    """Gradients of `policy` from one dream in `world`, whose own gradients stay as they are; returns its metrics.

    Args:
        world: as it is dreamed, at its temperature. start: (N, S), in equal parts for the members of a committee.
            progress: of the run (0 to 1), which decides the `Lesson`.
    """
    c = policy.config
    lesson = Lesson.at(progress, c)
    # One autocast around the whole dream: weights are converted once, not once a step.
    cast = torch.autocast(start.device.type, policy.precision, enabled=policy.precision != torch.float32)
    taught = [p for p in world.parameters() if p.requires_grad] if lesson.through else []
    for p in taught:  # the actor may learn through the dynamics; the world never learns from it
        p.requires_grad_(False)
    with torch.set_grad_enabled(lesson.through), cast:
        imagined = dream(world, start, _behaviour(policy, lesson, start), c.horizon)
    loss, metrics = policy.loss(imagined, world.features(imagined.states), lesson)
    loss.backward()
    for p in taught:
        p.requires_grad_(True)
    return metrics | {f"policy/{name}": torch.tensor(float(value)) for name, value in lesson._asdict().items()}
