"""DreamerV3's actor-critic (arXiv 2301.04104): the actor learns from imagined trajectories and from nothing else."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.config import PolicyConfig
from worldmodel.distributions import BoundedNormal, OneHot, TwoHot, unimix
from worldmodel.models.base import Dream
from worldmodel.nets import MLP
from worldmodel.policies.base import Policy
from worldmodel.returns import discount_weights, lambda_return, moving, moving_discount

SATURATED = 0.95
"""A mean beyond this is counted as saturated: the slope of tanh is a tenth there."""


class Lesson(NamedTuple):
    """What moves along a run in the loss of an actor-critic, at one moment of it."""

    discount: float
    entropy_bonus: float
    noise: float
    """What the standard deviations of continuous actions were multiplied by in the dream."""
    smoothness: float
    through: bool
    """Whether the actor learns through the dynamics."""

    @classmethod
    def at(cls, progress: float, c: PolicyConfig) -> Lesson:
        """At `progress` (0 to 1) of a run."""
        return cls(
            discount=moving_discount(progress, c.discount, c.final_discount),
            entropy_bonus=moving(progress, c.entropy, c.final_entropy) if c.final_entropy else c.entropy,
            noise=moving(progress, 1.0, c.final_noise),
            smoothness=c.smoothness if progress >= c.smoothness_from else 0.0,
            through=c.gradient == "dynamics" and progress >= c.dynamics_from,
        )


class ActorCritic(Policy):
    """Actor, critic, slow critic and the scale of returns.

    Args:
        features: width F of what it sees. actions: width A. discrete: actions are one-hot choices of A.
        precision: dtype of matrix multiplications.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        discrete: bool,
        config: PolicyConfig,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.discrete, self.precision = config, discrete, precision
        self.actions = actions
        outputs = actions if discrete else 2 * actions
        self.actor = MLP(features, config.units, config.layers, outputs, config.norm, scale=0.01)
        self.critic = MLP(features, config.units, config.layers, config.bins, config.norm, scale=0.0)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.scale = ReturnScale(config.scale_rate, config.max_scale or math.inf)

    def distribution(self, features: Tensor, noise: float = 1.0) -> OneHot | BoundedNormal:
        """The policy at features (..., F), the standard deviations of a continuous one times `noise`."""
        with self._cast(features):
            raw = self.actor(features)
        if self.discrete:
            return OneHot(unimix(raw, self.config.unimix))
        return BoundedNormal(raw, self.config.min_std, self.config.max_std, noise)

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        """Actions (..., A) at features (..., F): a sample, or the mode."""
        policy = self.distribution(features)
        return policy.sample() if sample else policy.mode()

    def act_apart(self, features: Tensor, noise: float = 1.0, drawn: Tensor | None = None) -> Tensor:
        """What acts in the dreams that teach: samples (B, A) at features (B, F); of a committee, every member apart.
        noise: what standard deviations of continuous actions are multiplied by. drawn: the standard normal numbers
        (B, A) that these then multiply, None for new ones."""
        policy = self.distribution(features, noise)
        return policy.sample() if drawn is None else policy.sample(drawn)

    def value(self, features: Tensor) -> Tensor:
        """The critic's expected discounted return (...) at features (..., F), in reward units."""
        with self._cast(features):
            return TwoHot(self.critic(features)).mean()

    def loss(self, dream: Dream, features: Tensor, lesson: Lesson | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor and critic loss on imagined trajectories.

            state     s_0     s_1     ...     s_{H-1}     s_H
            action        a_0     a_1 ...             a_{H-1}
            learns    a_0, v_0 from R_0 ...   up to a_{H-1}, v_{H-1} from R_{H-1}; s_H only bootstraps

        Args:
            dream: horizon H, batch B. features: (H + 1, B, F)
                of its states; attached to the world's graph only where the actor learns through the dynamics.
                lesson: None is that of a run's first moment.

        Returns: (loss (), metrics name -> ()).
        """
        c = self.config
        discount, entropy_bonus, noise, smoothness, through = lesson or Lesson.at(0.0, c)
        seen = features.detach()
        with self._cast(seen):
            critic = TwoHot(self.critic(seen))
            with torch.no_grad():
                slow = TwoHot(self.slow_critic(seen[:-1])).mean()
        discounts = discount * dream.conts
        values = self._frozen_value(features) if through else critic.mean().detach()
        returns = lambda_return(dream.rewards, values[1:], discounts, c.lam)
        weights = discount_weights(discounts.detach())
        self.scale.update(returns.detach())
        advantage = (returns - values[:-1].detach()) / self.scale.value()
        policy = self.distribution(seen[:-1], noise)
        entropy = policy.entropy()
        objective = advantage if through else self._log_prob(policy, dream.actions.detach()) * advantage.detach()
        actor_loss = -(weights * (objective + entropy_bonus * entropy)).mean()
        if c.mean_penalty and not self.discrete:
            actor_loss = actor_loss + c.mean_penalty * (weights * policy.raw_mean.square().sum(-1)).mean()
        if smoothness and not self.discrete:
            change = policy.mean.diff(dim=0).square().sum(-1)  # from s_t to s_{t+1}, weighed as s_{t+1}
            actor_loss = actor_loss + smoothness * (weights[1:] * change).sum() / weights.numel()  # a mean, too
        critic = TwoHot(critic.logits[:-1])
        critic_loss = (weights * (critic.loss(returns.detach()) + c.slow_scale * critic.loss(slow))).mean()
        metrics = {
            "loss/actor": actor_loss,
            "loss/critic": critic_loss,
            "policy/entropy": entropy.mean(),
            "policy/return": returns.mean(),
            "policy/value": values.mean(),
            "policy/advantage_std": advantage.std(),
            "policy/return_scale": self.scale.value(),
            "dream/reward": dream.rewards.mean(),
            "dream/cont": dream.conts.mean(),
        }
        if not self.discrete:
            metrics["policy/saturated"] = (policy.mean.abs() > SATURATED).float().mean()
            if len(policy.mean) > 1:
                metrics["policy/change"] = policy.mean.diff(dim=0).abs().mean()
        return actor_loss + critic_loss, {name: value.detach() for name, value in metrics.items()}

    def _log_prob(self, policy: OneHot | BoundedNormal, actions: Tensor) -> Tensor:
        return policy.log_prob(actions) if self.discrete else policy.log_prob(actions, self.config.noise_correlation)

    def replay_loss(
        self,
        features: Tensor,
        reward: Tensor,
        is_first: Tensor,
        is_terminal: Tensor,
        discount: float,
        after: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The critic's loss () on what really happened (DreamerV3's replay value loss); the actor learns nothing here.

            features  f_0      f_1      f_2  |  f_3          replayed sequences (T, B, ...) may cross episodes: nothing
            reward        r_1      r_2       |               leads from f_2 to f_3, so the return of f_1 bootstraps from
            is_first  ?        0        0    |  1            v_2, and f_2 learns nothing

        Args:
            features: (T, B, F). reward, is_first, is_terminal: (T, B), as in `Batch`. discount: gamma.
            after: rewards (K, B), steps (B,), features (B, F), is_terminal (B,) of `After`, which then stand in for
                the critic's own value at the last step of the sequences, where there are steps.
        """
        c, seen = self.config, features.detach()
        with self._cast(seen):
            critic = TwoHot(self.critic(seen))
            with torch.no_grad():
                slow = TwoHot(self.slow_critic(seen[:-1])).mean()
        values = critic.mean().detach()
        leads = ~is_first[1:]  # (T - 1, B): whether step t + 1 follows step t
        chained = torch.cat([leads[1:], torch.ones_like(leads[:1])])  # ... and whether step t + 2 follows that
        discounts = discount * (1 - is_terminal[1:].float())
        if after is not None:
            values = torch.cat([values[:-1], self._came(*after, discount, values[-1])[None]])
        returns = lambda_return(reward[1:], values[1:], discounts, c.lam * chained)
        critic = TwoHot(critic.logits[:-1])
        losses = critic.loss(returns) + c.slow_scale * critic.loss(slow)
        return (losses * leads).sum() / leads.sum().clamp(min=1)

    @torch.no_grad()
    def _came(
        self, rewards: Tensor, steps: Tensor, features: Tensor, is_terminal: Tensor, discount: float, otherwise: Tensor
    ) -> Tensor:
        """What came (B,) after the last step of each sequence, discounted, and the critic's value where it goes on from
        there; `otherwise` (B,) where no steps came."""
        powers = discount ** torch.arange(len(rewards), device=rewards.device)
        following = self.value(features) * ~is_terminal
        return torch.where(steps > 0, powers @ rewards + discount**steps * following, otherwise)

    def _frozen_value(self, features: Tensor) -> Tensor:
        """`value`, differentiable in the features alone: the actor's loss must not teach the critic."""
        weights = {name: p.detach() for name, p in self.critic.named_parameters()}
        with self._cast(features):
            return TwoHot(torch.func.functional_call(self.critic, weights, features)).mean()

    @torch.no_grad()
    def update_slow(self) -> None:
        """Moves the slow critic towards the critic; once after every optimiser step."""
        torch._foreach_lerp_(list(self.slow_critic.parameters()), list(self.critic.parameters()), self.config.slow_rate)

    def _cast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, self.precision, enabled=self.precision != torch.float32)


class ReturnScale(nn.Module):
    """max(1, moving P95 - moving P5) of the returns divides the advantage: one entropy bonus then fits all tasks.

    Args:
        rate: of the moving percentiles. limit: the divisor's upper bound, in reward units (ours; DreamerV3: none).
    """

    def __init__(self, rate: float, limit: float = math.inf):
        super().__init__()
        self.rate, self.limit = rate, limit
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Moves the percentiles towards those of `returns` (any shape)."""
        ordered = returns.flatten().float().sort().values  # `quantile` sorts too, but refuses more than 2^24 values
        for buffer, share in ((self.low, 0.05), (self.high, 0.95)):
            position = share * (len(ordered) - 1)
            below = math.floor(position)
            above = min(below + 1, len(ordered) - 1)
            buffer.lerp_(torch.lerp(ordered[below], ordered[above], position - below), self.rate)

    def value(self) -> Tensor:
        """The divisor (), from 1 to the limit."""
        return (self.high - self.low).clamp(1.0, self.limit)
