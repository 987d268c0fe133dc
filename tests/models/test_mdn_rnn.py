"""M: densities against slow references, components never mixed up with rows, temperature, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from test_sizes import count
from tiny import expect_equal
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from worldmodel.models.mdn_rnn import LOWEST, MDNRNN, Mixture

D, K = 4, 3


@pytest.fixture(params=[False, True], ids=["per dimension", "joint"])
def joint(request: pytest.FixtureRequest) -> bool:
    return request.param


def mixture(joint: bool, *leading: int) -> Mixture:
    groups = 1 if joint else D
    return Mixture(
        2 * torch.randn(*leading, groups, K), torch.randn(*leading, D, K), 0.5 * torch.randn(*leading, D, K) - 0.5
    )


def rows(made: Mixture, chosen: int | slice | list[int]) -> Mixture:
    return Mixture(made.logits[chosen], made.mean[chosen], made.log_sigma[chosen])


# -- the mixture ------------------------------------------------------------------------------------------------------


def slow_log_prob(made: Mixture, x: Tensor, joint: bool) -> Tensor:
    """One row, one dimension, one component at a time, in plain probabilities."""
    out = []
    for row in range(len(x)):
        dimensions = []
        for d in range(D):
            densities = []
            for k in range(K):
                sigma = math.exp(float(made.log_sigma[row, d, k]))
                z = (float(x[row, d]) - float(made.mean[row, d, k])) / sigma
                densities.append(math.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi)))
            dimensions.append(densities)
        groups = []
        for g in range(1 if joint else D):
            powers = [math.exp(float(v)) for v in made.logits[row, g]]
            weights = [power / sum(powers) for power in powers]
            parts = [math.prod(d[k] for d in dimensions) if joint else dimensions[g][k] for k in range(K)]
            groups.append(sum(w * p for w, p in zip(weights, parts, strict=True)))
        out.append(sum(math.log(p) for p in groups))
    return torch.tensor(out)


def test_log_likelihood_of_a_slow_reference(joint: bool) -> None:
    made, x = mixture(joint, 5), torch.randn(5, D)
    expect_equal(made.log_prob(x), slow_log_prob(made, x, joint), 1e-4)


def test_log_likelihood_of_torch(joint: bool) -> None:
    """Log sigma is a log of the standard deviation here, and never of the variance."""
    made, x = mixture(joint, 5, 2), torch.randn(5, 2, D)
    if joint:
        parts = Independent(Normal(made.mean.mT, made.log_sigma.exp().mT), 1)
        truth = MixtureSameFamily(Categorical(logits=made.logits.squeeze(-2)), parts).log_prob(x)
    else:
        parts = Normal(made.mean, made.log_sigma.exp())
        truth = MixtureSameFamily(Categorical(logits=made.logits), parts).log_prob(x).sum(-1)
    expect_equal(made.log_prob(x), truth, 1e-4)


def test_far_away_is_unlikely_but_finite(joint: bool) -> None:
    made = mixture(joint, 2)
    made.mean.requires_grad_(True)
    lost = made.log_prob(torch.full((2, D), 1e4))
    lost.sum().backward()
    assert bool(lost.isfinite().all()) and bool((lost < -1e6).all()) and bool(made.mean.grad.isfinite().all())


def test_bug_softmax_over_the_batch(joint: bool) -> None:
    """ctallec's cell normalised over the rows: with one row all components were equally likely."""
    made, x = mixture(joint, 6), torch.randn(6, D)
    whole = made.log_prob(x)
    for row in range(6):
        expect_equal(rows(made, [row]).log_prob(x[[row]])[0], whole[row])
    only = Mixture(made.logits[:1] + torch.tensor([0.0, 50, 0]), made.mean[:1], made.log_sigma[:1] - 9)
    for _ in range(20):  # one row: still the second component, always
        expect_equal(only.sample()[0], made.mean[0, :, 1], 0.01)


def test_samples_are_as_frequent_as_the_weights_say(joint: bool) -> None:
    many = 20_000
    weights = torch.tensor([0.6, 0.3, 0.1])
    logits = weights.log().expand(many, 1 if joint else 2, K)
    mean = torch.tensor([-10.0, 0, 10]).expand(many, 2, K)
    log_sigma = torch.tensor([0.5, 1.0, 2.0]).log().expand(many, 2, K)
    drawn = Mixture(logits, mean, log_sigma).sample()
    near = (drawn / 10).round().clamp(-1, 1)
    for k, (place, sigma) in enumerate(((-1, 0.5), (0, 1.0), (1, 2.0))):
        expect_equal((near == place).float().mean(0), weights[k].expand(2), 0.02)
        expect_equal(drawn[near == place].std(), torch.tensor(sigma), 0.05)
    together = (near[:, 0] == near[:, 1]).float().mean()
    expect_equal(together, torch.tensor(1.0) if joint else weights.square().sum(), 0.02)


def test_only_a_joint_mixture_can_say_all_or_nothing() -> None:
    """Two futures, (1, 1) and (-1, -1): a mixture per dimension finds (1, -1) just as likely."""
    mean, log_sigma = torch.tensor([[1.0, -1], [1, -1]]), torch.full((2, 2), -2.0)
    same, mixed = torch.tensor([1.0, 1]), torch.tensor([1.0, -1])
    each, one = Mixture(torch.zeros(2, 2), mean, log_sigma), Mixture(torch.zeros(1, 2), mean, log_sigma)
    expect_equal(each.log_prob(same), each.log_prob(mixed))
    expect_equal(one.log_prob(same) - each.log_prob(same), torch.tensor(2.0).log())
    assert one.log_prob(mixed) < one.log_prob(same) - 50


# -- temperature ------------------------------------------------------------------------------------------------------


def test_temperature_divides_logits_and_multiplies_variances(joint: bool) -> None:
    made = mixture(joint, 3)
    hot = made.tempered(1.5)
    assert torch.equal(hot.logits, made.logits / 1.5) and torch.equal(hot.mean, made.mean)
    expect_equal(hot.log_sigma.exp(), made.log_sigma.exp() * math.sqrt(1.5))


def test_temperature_one_is_no_temperature(joint: bool) -> None:
    made = mixture(joint, 3)
    torch.manual_seed(1)
    first = made.sample()
    torch.manual_seed(1)
    assert made.tempered(1.0) is made and torch.equal(made.tempered(1).sample(), first)


def test_near_zero_only_the_likeliest_mean_is_left(joint: bool) -> None:
    made = mixture(joint, 50)
    cold = made.tempered(1e-8)
    for _ in range(5):
        expect_equal(cold.sample(), made.mode(), 1e-3)
    best = made.logits.argmax(-1, keepdim=True).expand(50, D, 1)
    assert torch.equal(made.mode(), made.mean.gather(-1, best)[..., 0])


# -- the LSTM ---------------------------------------------------------------------------------------------------------


def test_published_parameter_count() -> None:
    """World Models, appendix A.2: 422,368; one bias, and 32 x 5 x 3 outputs."""
    made = MDNRNN(32, 3, 256, 5)
    assert count(made) == 422_368 and made.head.out_features == 480
    assert MDNRNN(32, 3, 256, 5, joint=True).head.out_features == 5 + 320


def test_one_step_is_that_of_torchs_lstm() -> None:
    made, truth = MDNRNN(D, 2, 7, K), nn.LSTMCell(D + 2, 7)
    order = [0, 2, 1, 3]  # torch has i, f, g, o
    with torch.no_grad():
        made.from_input.bias.normal_()

        def sorted_gates(weight: Tensor) -> Tensor:
            return torch.cat([weight.chunk(4)[i] for i in order])

        truth.weight_ih.copy_(sorted_gates(made.from_input.weight))
        truth.weight_hh.copy_(sorted_gates(made.from_hidden.weight))
        truth.bias_ih.copy_(sorted_gates(made.from_input.bias))
        truth.bias_hh.copy_(torch.cat([torch.zeros(7), torch.ones(7), torch.zeros(14)]))  # biased to remember
    z, action, hidden, cell = torch.randn(5, D), torch.rand(5, 2) * 2 - 1, torch.randn(5, 7), torch.randn(5, 7)
    expected = truth(torch.cat([z, action], -1), (hidden, cell))
    for a, b in zip(made(made.embed(z, action), hidden, cell), expected, strict=True):
        expect_equal(a, b)


def test_actions_beyond_one_count_as_one() -> None:
    made, z = MDNRNN(D, 2, 7, K), torch.randn(1, D)
    expect_equal(made.embed(z, torch.tensor([[5.0, -0.5]])), made.embed(z, torch.tensor([[1.0, -0.5]])))


def test_the_mixture_follows_from_the_memory_alone_unless_there_are_layers(joint: bool) -> None:
    plain, made = (MDNRNN(D, 2, 7, K, joint, layers) for layers in (0, 1))
    hidden, before, action = torch.randn(3, 7), torch.randn(3, D), torch.rand(3, 2)
    for changed in ((before + 1, action), (before, -action)):
        one, two = (plain.mixture(hidden, *seen).mean for seen in ((before, action), changed))
        assert torch.equal(one, two)
        one, two = (made.mixture(hidden, *seen).mean for seen in ((before, action), changed))
        assert bool((one != two).flatten(1).any(-1).all())
    beyond, one = torch.full((3, 2), 4.0), torch.ones(3, 2)
    expect_equal(made.mixture(hidden, before, beyond).mean, made.mixture(hidden, before, one).mean)
    assert torch.autograd.grad(made.mixture(hidden, before, beyond.requires_grad_()).mean.sum(), beyond)[0].any()


def test_sigma_never_vanishes(joint: bool) -> None:
    made = MDNRNN(D, 2, 7, K, joint)
    with torch.no_grad():
        made.head.bias.fill_(-100.0)
    found = made.mixture(torch.randn(3, 7), torch.zeros(3, D), torch.zeros(3, 2))
    assert found.mean.shape == found.log_sigma.shape == (3, D, K)
    assert found.logits.shape == (3, 1 if joint else D, K) and bool((found.log_sigma >= LOWEST).all())
    with torch.no_grad():
        made.head.bias.fill_(1.0)  # where sigmas usually are, the bound is not felt
        nothing = (torch.zeros(1, 7), torch.zeros(1, D), torch.zeros(1, 2))
        expect_equal(made.mixture(*nothing).log_sigma, torch.ones(1, D, K), 1e-3)


def test_dropout_forgets_no_memory() -> None:
    """Only what would be written is dropped: with closed input gates nothing changes."""
    made = MDNRNN(D, 2, 50, K)
    args = made.embed(torch.randn(1, D), torch.zeros(1, 2)), torch.randn(1, 50), torch.randn(1, 50)
    assert not torch.equal(made(*args, 0.5)[1], made(*args, 0.5)[1])
    assert torch.equal(made(*args, 0.0)[1], made(*args)[1])
    with torch.no_grad():
        made.from_input.bias[:50] = -1e4
    closed = made.embed(torch.randn(1, D), torch.zeros(1, 2)), args[1], args[2]
    assert torch.equal(made(*closed, 0.5)[1], made(*closed)[1])


def circle(steps: int, width: int) -> tuple[Tensor, Tensor]:
    """z (T + 1, B, 2) goes round a square's corners, one further where action (T, B, 1) is 1, back where it is -1."""
    action = torch.randint(2, (steps, width, 1)).float() * 2 - 1
    place = torch.cat([torch.randint(4, (1, width)), action[..., 0].long()]).cumsum(0) % 4
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
    return corners[place] + 0.05 * torch.randn(steps + 1, width, 2), action


def remembered(made: MDNRNN, z: Tensor, action: Tensor) -> Tensor:
    hidden = cell = torch.zeros(z.shape[1], 24)
    out = []
    for t in range(len(action)):
        hidden, cell = made(made.embed(z[t], action[t]), hidden, cell)
        out.append(hidden)
    return torch.stack(out)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_deterministic_sequence_is_learned(joint: bool, layers: int) -> None:
    """... and dreamed: ten steps on its own, at the noise that was in it."""
    made = MDNRNN(2, 1, 24, K, joint, layers)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(400):
        z, action = circle(5, 64)
        loss = -made.mixture(remembered(made, z, action), z[:-1], action).log_prob(z[1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = 2 * (math.log(0.05) + 0.5 * math.log(2 * math.pi * math.e))  # what cannot be known
    assert float(loss.detach()) < noise + 1.0
    z, action = circle(10, 100)
    hidden = cell = torch.zeros(100, 24)
    now = z[0]
    with torch.no_grad():
        for t in range(10):
            hidden, cell = made(made.embed(now, action[t]), hidden, cell)
            now = made.mixture(hidden, now, action[t]).sample()
    assert ((now.sign() == z[-1].sign()).all(-1).float().mean() > 0.9) and (now - z[-1]).abs().median() < 0.15
