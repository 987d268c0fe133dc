"""The actor-critic's losses and gradients against slow loops, and against an analytic world."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import ACTIONS, POLICY, action, expect_equal, shake
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from worldmodel.distributions import TwoHot
from worldmodel.models.base import Dream, Step, WorldModel, dream
from worldmodel.policies.actor_critic import ActorCritic, Lesson, ReturnScale

FEATURES = 6


def policy(discrete: bool = False, **overrides) -> ActorCritic:
    """Random in every weight; the slow critic differs from the critic."""
    return shake(ActorCritic(FEATURES, ACTIONS, discrete, dataclasses.replace(POLICY, **overrides)))


def imagined(discrete: bool, horizon: int = 4, width: int = 5, reward: float = 1.0) -> tuple[Dream, Tensor]:
    """A dream with a terminal state in it, and its features."""
    conts = torch.rand(horizon, width)
    conts[1, 0] = 0.0
    states = torch.randn(horizon + 1, width, FEATURES)
    return Dream(states, action(discrete, horizon, width), reward * torch.randn(horizon, width), conts), states.clone()


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


def gradients(loss: Tensor, made: ActorCritic) -> dict[str, Tensor | None]:
    names, params = zip(*[(n, p) for n, p in made.named_parameters() if p.requires_grad], strict=True)
    return dict(zip(names, torch.autograd.grad(loss, params, allow_unused=True), strict=True))


def expect_gradient(actual: Tensor, expected: Tensor) -> None:
    """Alike to a thousandth of its length."""
    assert actual.shape == expected.shape and expected.norm() > 0
    assert (actual - expected).norm() <= 1e-3 * expected.norm()


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


def test_a_discount_in_place_of_the_configured_one() -> None:
    told, features = imagined(False)
    torch.manual_seed(4)
    near = policy(discount=0.5)
    torch.manual_seed(4)
    far = policy(discount=0.9)
    assert near.loss(told, features, Lesson.at(0.0, far.config))[0] == far.loss(told, features)[0]


def test_an_entropy_bonus_that_is_given_stands_in_for_the_configured_one() -> None:
    told, features = imagined(False)
    torch.manual_seed(1)
    free = policy(entropy=0.0)
    torch.manual_seed(1)
    bound = policy(entropy=0.2)
    given = Lesson.at(0.0, bound.config)
    assert free.loss(told, features, given)[0] == bound.loss(told, features)[0] != free.loss(told, features)[0]


def slow_replay_loss(made: ActorCritic, features: Tensor, reward: Tensor, first: Tensor, terminal: Tensor) -> Tensor:
    """Step by step, each episode for itself; discount 0.9."""
    c, (steps, width) = made.config, reward.shape
    value = TwoHot(made.critic(features)).mean().detach()
    slow = TwoHot(made.slow_critic(features)).mean().detach()
    losses = []
    for b in range(width):
        bounds = [0, *(t for t in range(1, steps) if first[t, b]), steps]
        for begin, end in pairwise(bounds):
            following = value[end - 1, b]
            for t in reversed(range(begin, end - 1)):
                alive = 0.0 if terminal[t + 1, b] else 0.9
                following = reward[t + 1, b] + alive * ((1 - c.lam) * value[t + 1, b] + c.lam * following)
                guess = TwoHot(made.critic(features[t, b]))
                losses.append(guess.loss(following) + c.slow_scale * guess.loss(slow[t, b]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", range(4))
def test_replayed_rewards_teach_the_critic_alone(seed: int) -> None:
    torch.manual_seed(seed)
    made = policy(slow_scale=0.7, discount=0.5)
    features, reward = torch.randn(7, 5, FEATURES, requires_grad=True), torch.randn(7, 5)
    first, terminal = torch.rand(7, 5) < 0.3, torch.rand(7, 5) < 0.3
    loss = made.replay_loss(features, reward, first, terminal, 0.9)
    expected = slow_replay_loss(made, features.detach(), reward, first, terminal)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    actual, wanted = gradients(loss, made), gradients(expected, made)
    for name, grad in actual.items():
        if name.startswith("critic"):
            expect_gradient(grad, wanted[name])
        else:
            assert grad is None
    assert torch.autograd.grad(
        made.replay_loss(features, reward, first, terminal, 0.9), features, allow_unused=True
    ) == (None,)


@pytest.mark.parametrize("seed", range(4))
def test_what_came_after_the_sequences_stands_in_for_the_last_value(seed: int) -> None:
    """One episode in two pieces teaches as the same episode in one, where lambda is 1."""
    torch.manual_seed(seed)
    made = policy(slow_scale=0.7, lam=1.0)
    features, reward = torch.randn(7, 5, FEATURES), torch.randn(7, 5)
    terminal = torch.zeros(7, 5, dtype=torch.bool)
    terminal[-1] = torch.rand(5) < 0.5
    first = torch.zeros_like(terminal)
    after = (reward[4:], torch.full((5,), 3), features[-1], terminal[-1])
    loss = made.replay_loss(features[:4], reward[:4], first[:4], terminal[:4], 0.9, after)
    value, slow = (TwoHot(net(features)).mean().detach() for net in (made.critic, made.slow_critic))
    wanted, following = [], value[-1] * ~terminal[-1]
    for t in reversed(range(6)):
        following = reward[t + 1] + 0.9 * following
        if t < 3:
            guess = TwoHot(made.critic(features[t]))
            wanted.append(guess.loss(following) + 0.7 * guess.loss(slow[t]))
    assert loss.item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)


def test_without_steps_after_them_the_sequences_teach_as_ever() -> None:
    made, none = policy(), torch.zeros(5, dtype=torch.bool)
    features, reward, flags = torch.randn(7, 5, FEATURES), torch.randn(7, 5), torch.zeros(7, 5, dtype=torch.bool)
    after = (torch.zeros(3, 5), torch.zeros(5, dtype=torch.long), torch.zeros(5, FEATURES), none)
    with_none, without = (made.replay_loss(features, reward, flags, flags, 0.9, given) for given in (after, None))
    assert with_none == without


def test_sequences_in_which_nothing_follows_teach_nothing() -> None:
    made, ends = policy(), torch.ones(4, 3, dtype=torch.bool)
    assert made.replay_loss(torch.randn(4, 3, FEATURES), torch.randn(4, 3), ends, ~ends, 0.9) == 0


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


# -- the scale of returns ---------------------------------------------------------------------------------------------


def test_return_scale_against_numpy() -> None:
    scale, low, high = ReturnScale(0.1), 0.0, 0.0
    for step in range(30):
        returns = torch.randn(7, 13) * 10 ** (step / 10) + 3 * step
        scale.update(returns)
        fifth, top = np.percentile(returns.numpy().astype(np.float64), [5, 95])
        low, high = 0.9 * low + 0.1 * fifth, 0.9 * high + 0.1 * top
        assert scale.low.item() == pytest.approx(low, rel=1e-4)
        assert scale.high.item() == pytest.approx(high, rel=1e-4)
        assert scale.value().item() == pytest.approx(max(1.0, high - low), rel=1e-4)
    assert scale.value() > 50


@pytest.mark.parametrize("count", [1, 2, 20, 21])
def test_percentiles_of_few_returns(count: int) -> None:
    scale, returns = ReturnScale(1.0), torch.randn(count)
    scale.update(returns)
    expected = np.percentile(returns.numpy(), [5, 95])
    assert [scale.low.item(), scale.high.item()] == pytest.approx(expected.tolist(), abs=1e-6)


def test_return_scale_never_enlarges_small_returns() -> None:
    scale = ReturnScale(1.0)
    scale.update(torch.linspace(0, 0.1, 50))
    assert scale.value() == 1
    scale.update(torch.linspace(0, 100, 101))
    assert scale.value().item() == pytest.approx(90)


def test_return_scale_has_a_limit_where_one_is_asked_for() -> None:
    returns = torch.linspace(0, 1000, 101)
    for limit, expected in ((0.0, 900.0), (100.0, 100.0), (2000.0, 900.0)):
        made = policy(max_scale=limit, scale_rate=1.0)
        made.scale.update(returns)
        assert made.scale.value().item() == pytest.approx(expected)
        assert made.scale.high.item() == pytest.approx(950)  # what moves is not what is limited


def test_return_scale_is_saved_with_the_weights() -> None:
    assert {"scale.low", "scale.high"} <= set(policy().state_dict())


@pytest.mark.parametrize("gradient", ["reinforce", "dynamics"])
def test_return_scale_divides_the_advantage(gradient: str) -> None:
    """torchrl#4125: a scale that is computed, logged and never used."""
    losses = []
    for spread in (1.0, 50.0):
        torch.manual_seed(3)
        made = policy(gradient=gradient, entropy=0.0, scale_rate=0.0)
        made.scale.high.fill_(spread)
        _, metrics = made.loss(*imagined(False, reward=30.0))
        losses.append((metrics["loss/actor"].item(), metrics["policy/advantage_std"].item()))
        assert metrics["policy/return_scale"].item() == spread
    assert losses[0] == pytest.approx([50 * x for x in losses[1]], rel=1e-4)
    assert abs(losses[0][0]) > 0.1


def test_return_scale_moves_with_every_loss_and_is_read_afterwards() -> None:
    made = policy(scale_rate=1.0)
    _, metrics = made.loss(*imagined(False, reward=100.0))
    assert made.scale.high > made.scale.low and metrics["policy/return_scale"] > 50
    assert metrics["policy/return_scale"] == made.scale.value()


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
