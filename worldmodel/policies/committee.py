"""Several actor-critics that learn apart and act together: what one of them got wrong, the others mostly did not.

    learn     each from dreams of its own, which it alone drives; all side by side in one batch
    act       continuous: by the mean of their distributions; discrete: by their mean probabilities

Policies that learned in the same world from other random numbers err in other places; the mean of their actions errs
less than any of them does on average (bagging: Breiman 1996; for actors: SUNRISE, Lee et al. 2021, arXiv 2007.04938).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldmodel.config import PolicyConfig
from worldmodel.distributions import OneHot
from worldmodel.models.base import Dream
from worldmodel.policies.actor_critic import ActorCritic, Lesson
from worldmodel.policies.base import Policy


class Committee(Policy):
    """M actor-critics, with the interface of one.

    Args:
        members: all with the same features, actions and configuration.
    """

    def __init__(self, members: Sequence[ActorCritic]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config, self.discrete = members[0].config, members[0].discrete
        self.actions = members[0].actions

    @property
    def actor(self) -> nn.ModuleList:
        """All actors."""
        return nn.ModuleList(member.actor for member in self.members)

    @property
    def critic(self) -> nn.ModuleList:
        """All critics."""
        return nn.ModuleList(member.critic for member in self.members)

    @property
    def precision(self) -> torch.dtype:
        """dtype of matrix multiplications."""
        return self.members[0].precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        for member in self.members:
            member.precision = dtype

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        policies = [member.distribution(features) for member in self.members]
        if self.discrete:
            policy = OneHot(torch.stack([policy.probs for policy in policies]).mean(0))
            return policy.sample() if sample else policy.mode()
        mean = torch.stack([policy.mean for policy in policies]).mean(0)
        if not sample:
            return mean
        return mean + torch.stack([policy.std for policy in policies]).mean(0) * torch.randn_like(mean)

    def act_apart(self, features: Tensor, noise: float = 1.0, drawn: Tensor | None = None) -> Tensor:
        """Sampled actions (M N, A) at features (M N, F), where every member drives N rows: the first the first N.
        noise, drawn: as of `ActorCritic.act_apart`."""
        count = len(self.members)
        numbers = [None] * count if drawn is None else drawn.chunk(count)
        parts = zip(self.members, features.chunk(count), numbers, strict=True)
        return torch.cat([member.act_apart(part, noise, some) for member, part, some in parts])

    def value(self, features: Tensor) -> Tensor:
        """The mean of what the critics expect (...) at features (..., F), in reward units."""
        return torch.stack([member.value(features) for member in self.members]).mean(0)

    def loss(self, dream: Dream, features: Tensor, lesson: Lesson | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the members' losses, each on the dreams that it drove itself; metrics are means over them.

        Arguments as of `ActorCritic.loss`; the batch of the dream is M N, as `act_apart` divides it.
        """
        count = len(self.members)
        parts = zip(*(field.chunk(count, 1) for field in dream), strict=True)
        told = [
            member.loss(Dream(*part), seen, lesson)
            for member, part, seen in zip(self.members, parts, features.chunk(count, 1), strict=True)
        ]
        metrics = {name: torch.stack([metric[name] for _, metric in told]).mean() for name in told[0][1]}
        return torch.stack([loss for loss, _ in told]).sum(), metrics

    def replay_loss(self, *replayed: Tensor, discount: float, after: tuple[Tensor, ...] | None = None) -> Tensor:
        """The sum of the members' `ActorCritic.replay_loss`."""
        return torch.stack([member.replay_loss(*replayed, discount, after) for member in self.members]).sum()

    def update_slow(self) -> None:
        """Moves all slow critics."""
        for member in self.members:
            member.update_slow()


def actor_critic(
    features: int, actions: int, discrete: bool, config: PolicyConfig, precision: torch.dtype = torch.float32
) -> ActorCritic | Committee:
    """One actor-critic, or a committee of `config.members`; arguments as of `ActorCritic`."""
    made = [ActorCritic(features, actions, discrete, config, precision) for _ in range(config.members)]
    return made[0] if len(made) == 1 else Committee(made)
