"""The actor-critic's losses and gradients against slow loops, and against an analytic world."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from actor_critic_helpers import FEATURES, expect_gradient, gradients, imagined, policy
from tiny import ACTIONS, POLICY, action, expect_equal, shake
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from worldmodel.distributions import TwoHot, correlated_noise
from worldmodel.models.base import Dream, Step, WorldModel, dream
from worldmodel.policies.actor_critic import ActorCritic, Lesson


def torch_policy(made: ActorCritic, features: Tensor) -> Categorical | Independent:
    raw = made.actor(features)
    if made.discrete:
        share = made.config.unimix
        return Categorical(probs=(1 - share) * torch.softmax(raw, -1) + share / ACTIONS)
    mean, std = raw.chunk(2, -1)
    return Independent(Normal(torch.tanh(mean), 0.9 * torch.sigmoid(std + 2) + 0.1), 1)


def slow_losses(made: ActorCritic, told: Dream, features: Tensor) -> tuple[Tensor, Tensor]:
    """(actor loss, critic loss) of the paper, step by step; `made.scale` must not have been updated yet."""
    c, (horizon, width) = made.config, told.rewards.shape
    value = TwoHot(made.critic(features)).mean().detach()
    slow = TwoHot(made.slow_critic(features)).mean().detach()
    returns = torch.zeros(horizon + 1, width)
    returns[horizon] = value[horizon]
    for t in reversed(range(horizon)):
        mixed = (1 - c.lam) * value[t + 1] + c.lam * returns[t + 1]
        returns[t] = told.rewards[t] + c.discount * told.conts[t] * mixed
    low, high = np.percentile(returns[:-1].numpy(), [5, 95])
    low = (1 - c.scale_rate) * made.scale.low.item() + c.scale_rate * low
    high = (1 - c.scale_rate) * made.scale.high.item() + c.scale_rate * high
    divisor = max(1.0, min(high - low, c.max_scale or np.inf))
    actor, critic = torch.zeros(()), torch.zeros(())
    for b in range(width):
        weight = 1.0
        for t in range(horizon):
            chosen, pi = told.actions[t, b], torch_policy(made, features[t, b])
            logprob = pi.log_prob(chosen.argmax() if made.discrete else chosen)
            advantage = (returns[t, b] - value[t, b]) / divisor
            actor = actor - weight * (logprob * advantage + c.entropy * pi.entropy())
            if not made.discrete:
                raw = made.actor(features[t, b])[:ACTIONS]
                actor = actor + weight * c.mean_penalty * raw.square().sum()
                if t:
                    before = made.actor(features[t - 1, b])[:ACTIONS]
                    actor = actor + weight * c.smoothness * (raw.tanh() - before.tanh()).square().sum()
            guess = TwoHot(made.critic(features[t, b]))
            critic = critic + weight * (guess.loss(returns[t, b]) + c.slow_scale * guess.loss(slow[t, b]))
            weight *= c.discount * told.conts[t, b].item()
    return actor / (horizon * width), critic / (horizon * width)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize(("reward", "most"), [(1.0, 0.0), (1e5, 0.0), (1e5, 100.0)])
def test_losses_and_gradients_against_the_slow_loop(discrete: bool, reward: float, most: float) -> None:
    """`reward` large: the return scale divides, by `most` at most. Entropy weighs enough here to be seen."""
    made = policy(
        discrete, entropy=0.3, mean_penalty=0.2, smoothness=0.4, slow_scale=0.7, scale_rate=0.1, discount=0.9,
        max_scale=most,
    )  # fmt: skip
    told, features = imagined(discrete, reward=reward)
    actor, critic = slow_losses(made, told, features)
    loss, metrics = made.loss(told, features)
    assert metrics["loss/actor"].item() == pytest.approx(actor.item(), rel=1e-3)
    assert metrics["loss/critic"].item() == pytest.approx(critic.item(), rel=1e-3)
    assert loss.item() == pytest.approx((actor + critic).item(), rel=1e-3)
    actual, expected = gradients(loss, made), gradients(actor + critic, made)
    for name in expected:
        expect_gradient(actual[name], expected[name])
    assert made.slow_critic[0][0].weight.requires_grad is False


def test_with_correlated_noise_the_actors_gradient_is_that_of_what_such_a_hand_returns() -> None:
    """A thing pushed along a line is paid by where it is. The actor is one and the same number at every step, so what
    it returns with this very noise can be differentiated, and the score function has to find that slope."""
    steps, batch, correlation, discount = 5, 100_000, 0.8, 0.9
    made = policy(
        noise_correlation=correlation, entropy=0.0, discount=discount, lam=1.0, min_std=0.3, max_std=0.3, bins=3
    )
    for p in made.parameters():
        p.data.zero_()
    drawn = correlated_noise(torch.zeros(batch, ACTIONS), steps, correlation)
    (bias,) = [p for p in made.actor[-1].parameters() if p.shape == (2 * ACTIONS,)]
    features = torch.zeros(steps + 1, batch, FEATURES)

    def driven() -> tuple[Tensor, Tensor]:
        acts = made.distribution(features[:-1]).sample(drawn)
        return acts, -(acts[..., 0].cumsum(0) - 1).square()

    def weighed(rewards: Tensor) -> Tensor:
        """What reinforcing every step by what follows it, weighed by its own discount, amounts to."""
        return sum(discount**t * rewards[t].mean() for t in range(steps))

    (truth,) = torch.autograd.grad(weighed(driven()[1]), bias)
    with torch.no_grad():
        acts, rewards = driven()
    loss, _ = made.loss(Dream(features, acts, rewards, torch.ones(steps, batch)), features)
    (found,) = torch.autograd.grad(loss, bias)
    scale = made.scale.value().item()
    expect_equal(-found[0] * steps * scale, truth[0], 0.05 * truth[0].abs().item())
    made.config = dataclasses.replace(made.config, noise_correlation=0.0)  # as if the noise were white
    wrong, _ = made.loss(Dream(features, acts, rewards, torch.ones(steps, batch)), features)
    (wrong,) = torch.autograd.grad(wrong, bias)
    assert (-wrong[0] * steps * scale - truth[0]).abs() > 0.3 * truth[0].abs()


def test_a_lesson_stands_in_for_what_is_configured() -> None:
    """As where a run has moved discount, entropy bonus and smoothness."""
    told, features = imagined(False)
    torch.manual_seed(4)
    first = policy(discount=0.5, entropy=0.0)
    torch.manual_seed(4)
    last = policy(discount=0.9, entropy=0.2, smoothness=0.4)
    own = first.loss(told, features)[0]
    assert first.loss(told, features, Lesson.at(0.0, last.config))[0] == last.loss(told, features)[0] != own


@pytest.mark.parametrize(("penalty", "saturated"), [(0.0, 1.0), (1e-3, 0.0)])
def test_a_saturated_actor_comes_back_only_where_its_mean_is_penalised(penalty: float, saturated: float) -> None:
    """Nothing is paid, so nothing else moves the mean."""
    made = policy(horizon=1, entropy=3e-4, mean_penalty=penalty)
    with torch.no_grad():
        made.actor[-1].bias[:ACTIONS] = 6.0
        for p in made.critic[-1].parameters():
            p.zero_()
    optimizer, still = torch.optim.Adam(made.actor.parameters(), 0.05), torch.zeros(2, 8, FEATURES)
    for _ in range(100):
        told = Dream(still, made.act(still[:1]), torch.zeros(1, 8), torch.zeros(1, 8))
        loss, metrics = made.loss(told, still)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["policy/saturated"] == saturated


@pytest.mark.parametrize(("smoothness", "flips"), [(0.0, True), (0.02, False)])
def test_an_actor_that_flips_to_and_fro_is_calmed_where_change_is_penalised(smoothness: float, flips: bool) -> None:
    """Nothing is paid; the state says whose turn it is."""
    made = policy(horizon=8, entropy=0.0, smoothness=smoothness)
    turn = torch.tensor([1.0, -1.0]).repeat(5)[:9, None, None].expand(9, 4, FEATURES)
    optimizer = torch.optim.Adam(made.actor.parameters(), 0.01)
    for _ in range(200):  # taught to flip ...
        optimizer.zero_grad()
        (made.distribution(turn).mean - 0.9 * turn[..., :ACTIONS]).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        for p in made.critic[-1].parameters():
            p.zero_()
    optimizer, changes = torch.optim.Adam(made.actor.parameters(), 0.01), []
    for _ in range(200):
        told = Dream(turn, made.act(turn[:-1]), torch.zeros(8, 4), torch.ones(8, 4))
        loss, metrics = made.loss(told, turn)
        changes.append(metrics["policy/change"].item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert changes[0] > 1.5
    assert (changes[-1] > 1.5) == flips
    assert flips or changes[-1] < 0.1


def test_a_change_into_the_end_of_an_episode_counts_for_nothing() -> None:
    made = policy(smoothness=1.0)
    told, features = imagined(False)
    told.conts[0] = 0.0  # s_1 and all after it are the end
    made.scale.rate = 0.0
    with_it = made.loss(told, features)[0]
    made.config = dataclasses.replace(made.config, smoothness=0.0)
    assert made.loss(told, features)[0] == with_it


def test_metrics_are_numbers_without_gradient() -> None:
    made = policy()
    _, metrics = made.loss(*imagined(False))
    assert all(m.shape == () and not m.requires_grad for m in metrics.values())
    assert {"policy/return_scale", "policy/entropy", "policy/value", "dream/reward", "dream/cont"} <= set(metrics)


def test_the_last_state_only_bootstraps() -> None:
    """Neither actor nor critic is judged at s_H, where no action was taken."""
    made = policy(lam=0.0)
    told, features = imagined(False)
    told.conts[-1] = 0.0  # s_H is terminal: it counts for nothing at all
    made.scale.rate = 0.0  # and the scale stays
    first = gradients(made.loss(told, features)[0], made)
    features[-1] = 100 * torch.randn_like(features[-1])
    second = gradients(made.loss(told, features)[0], made)
    for name in first:
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("discrete", [False, True])
def test_reinforce_never_follows_the_dream_backwards(discrete: bool) -> None:
    made = policy(discrete)
    told, features = imagined(discrete)
    leaves = [x.requires_grad_() for x in (told.rewards, told.conts, told.actions, features)]
    made.loss(told, features)[0].backward()
    assert all(leaf.grad is None for leaf in leaves)


# -- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_distribution_is_that_of_the_paper(discrete: bool) -> None:
    made, features = policy(discrete), torch.randn(4, 7, FEATURES)
    ours, theirs = made.distribution(features), torch_policy(made, features)
    chosen = action(discrete, 4, 7)  # continuous ones reach far beyond [-1, 1]
    expect_equal(ours.log_prob(chosen), theirs.log_prob(chosen.argmax(-1) if discrete else chosen), 1e-4)
    expect_equal(ours.entropy(), theirs.entropy(), 1e-5)


def test_greedy_continuous_action_is_the_mean_and_std_lies_in_its_range() -> None:
    made, features = policy(), 100 * torch.randn(50, FEATURES)
    pi = made.distribution(features)
    expect_equal(made.act(features, sample=False), torch.tanh(made.actor(features).chunk(2, -1)[0]))
    assert pi.std.min() >= 0.1 and pi.std.max() <= 1.0
    narrow = policy(min_std=0.2, max_std=0.3).distribution(features)
    assert narrow.std.min() >= 0.2 and narrow.std.max() <= 0.3


def test_greedy_discrete_action_is_the_likeliest_one_hot() -> None:
    made, features = policy(True), torch.randn(50, FEATURES)
    greedy = made.act(features, sample=False)
    assert torch.equal(greedy.argmax(-1), made.actor(features).argmax(-1))
    expect_equal(greedy.sum(-1), torch.ones(50))
    assert made.distribution(1e4 * features).probs.min() >= 0.0099 / ACTIONS  # 1 % uniform


@pytest.mark.parametrize("discrete", [False, True])
def test_samples_follow_the_distribution(discrete: bool) -> None:
    made = policy(discrete)
    features = torch.randn(FEATURES).expand(20_000, FEATURES)
    drawn, pi = made.act(features).detach(), torch_policy(made, features[0])
    expected = pi.probs if discrete else pi.mean
    expect_equal(drawn.mean(0), expected.detach(), 0.03)
    if not discrete:
        assert drawn.abs().max() > 1.5  # the raw sample, which is what its log-probability is taken of


def test_a_new_policy_is_undecided_and_a_new_critic_says_zero() -> None:
    features = torch.randn(40, FEATURES)
    new = ActorCritic(FEATURES, ACTIONS, False, dataclasses.replace(POLICY, units=64))
    pi = new.distribution(features)
    assert pi.mean.abs().max() < 0.05 and (pi.std - (0.9 / (1 + math.exp(-2)) + 0.1)).abs().max() < 0.01
    assert torch.equal(new.value(features), torch.zeros(40))
    discrete = ActorCritic(FEATURES, ACTIONS, True, dataclasses.replace(POLICY, units=64))
    expect_equal(discrete.distribution(features).probs, torch.full((40, ACTIONS), 1 / ACTIONS), 0.01)
    for a, b in zip(new.critic.parameters(), new.slow_critic.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_slow_critic_follows_at_its_rate() -> None:
    made = policy(slow_rate=0.02)
    before = [p.clone() for p in made.slow_critic.parameters()]
    made.update_slow()
    for old, new, goal in zip(before, made.slow_critic.parameters(), made.critic.parameters(), strict=True):
        expect_equal(new, 0.98 * old + 0.02 * goal.detach(), 1e-6)
        assert bool((new != old).any())


# -- through the dynamics ---------------------------------------------------------------------------------------------


class Slope(WorldModel):
    """s' = s + 0.3 tanh(W a), paid -|s'|^2, going on with probability sigmoid(1 + s'_0): everything differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.push = torch.nn.Parameter(torch.randn(FEATURES, ACTIONS))

    def features(self, state: Tensor) -> Tensor:
        return state

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        state = state + 0.3 * torch.tanh(action @ self.push.T)
        return Step(state, -state.square().sum(-1), torch.sigmoid(1 + state[..., 0]))


def slow_objective(made: ActorCritic, world: Slope, start: Tensor, act) -> Tensor:
    """The actor's loss through the dynamics, one trajectory at a time; weights and scale are constants."""
    c = made.config
    total = torch.zeros(())
    for state in start:
        rewards, conts, values, entropies = [], [], [], []
        for _ in range(c.horizon):
            entropies.append(torch_policy(made, state.detach()).entropy())
            step = world.imagine(state[None], act(state[None]))
            state = step.state[0]
            rewards.append(step.reward[0])
            conts.append(c.discount * step.cont[0])
            values.append(TwoHot(made.critic(state)).mean())
        following, returns = values[-1], []
        for t in reversed(range(c.horizon)):
            following = rewards[t] + conts[t] * ((1 - c.lam) * values[t] + c.lam * following)
            returns.insert(0, following)
        weight = 1.0
        for t in range(c.horizon):
            total = total - weight * (returns[t] / made.scale.value() + c.entropy * entropies[t])
            weight *= conts[t].item()
    return total / (c.horizon * len(start))


@pytest.mark.parametrize("discrete", [False, True])
def test_dynamics_gradient_is_that_of_the_imagined_return(discrete: bool, noiseless: None) -> None:
    """Nothing reaches the critic from the actor's loss; what it gets is the critic loss alone."""
    made, world = policy(discrete, gradient="dynamics", entropy=0.1, scale_rate=0.0), Slope().requires_grad_(False)
    made.scale.high.fill_(4.0)
    start = 0.5 * torch.randn(3, FEATURES)

    def act(features: Tensor) -> Tensor:
        return made.act(features, sample=discrete)  # greedy; the mode of one-hots, straight through

    told = dream(world, start, act, made.config.horizon)
    actual = gradients(made.loss(told, world.features(told.states))[0], made)
    expected = gradients(slow_objective(made, world, start, act), made)
    plain = Dream(*(x.detach() for x in told))
    critic = gradients(slow_losses(made, plain, plain.states)[1], made)
    for name, grad in actual.items():
        expect_gradient(grad, (expected if name.startswith("actor") else critic)[name])
    assert sum(g.abs().sum() for n, g in actual.items() if n.startswith("actor")) > 0.01
    assert any(expected[n] is not None and expected[n].any() for n in expected if n.startswith("critic"))  # it would


def test_dynamics_gradient_reaches_the_critics_input_but_not_its_weights() -> None:
    made = policy(gradient="dynamics")
    features = torch.randn(3, FEATURES, requires_grad=True)
    value = made._frozen_value(features)
    expect_equal(value, made.value(features))
    value.sum().backward()
    assert features.grad.any() and all(p.grad is None for p in made.critic.parameters())


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_bfloat16_keeps_losses_in_float32(gradient: str) -> None:
    low = ActorCritic(FEATURES, ACTIONS, False, dataclasses.replace(POLICY, gradient=gradient), torch.bfloat16)
    shake(low)
    full = ActorCritic(FEATURES, ACTIONS, False, dataclasses.replace(POLICY, gradient=gradient))
    full.load_state_dict(low.state_dict())
    told, features = imagined(False)
    told = told._replace(rewards=told.rewards.requires_grad_())
    loss, _ = low.loss(told, features)
    assert loss.dtype == low.act(features).dtype == low.value(features).dtype == torch.float32
    assert low.value(features).isfinite().all() and loss.isfinite()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in low.actor.parameters() if p.grad is not None)
    expect_equal(low.distribution(features).mean, full.distribution(features).mean.detach(), 0.05)
    assert bool((low.distribution(features).mean != full.distribution(features).mean).any())
