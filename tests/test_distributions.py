"""Every formula of `distributions` against a slow one, or against torch.distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, OneHotCategorical, kl_divergence

from worldmodel.distributions import (
    BoundedNormal,
    OneHot,
    TwoHot,
    categorical_kl,
    correlated_noise,
    symexp,
    symlog,
    two_hot_bins,
    unimix,
)

# -- symlog, unimix ---------------------------------------------------------------------------------------------------


def test_symlog_is_the_signed_logarithm_and_symexp_its_inverse() -> None:
    x = torch.tensor([-1e6, -3.0, -1e-6, 0.0, 1e-6, 0.5, 7.0, 1e6])
    expected = [math.copysign(math.log(1 + abs(v)), v) for v in x.tolist()]
    torch.testing.assert_close(symlog(x), torch.tensor(expected))
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-5, atol=0)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_unimix_is_softmax_mixed_with_the_uniform(share: float) -> None:
    logits = torch.randn(7, 5) * 3
    softmax = np.exp(logits.double().numpy())
    softmax /= softmax.sum(-1, keepdims=True)
    torch.testing.assert_close(unimix(logits, share).double(), torch.tensor((1 - share) * softmax + share / 5))


def test_unimix_bounds_probabilities_of_extreme_logits() -> None:
    probs = unimix(torch.tensor([1e4, -1e4, 0.0, 0.0]), 0.01)
    torch.testing.assert_close(probs, torch.tensor([0.9925, 0.0025, 0.0025, 0.0025]))
    assert unimix(torch.zeros(3, dtype=torch.bfloat16), 0.01).dtype == torch.float32


# -- one-hot ----------------------------------------------------------------------------------------------------------


def test_one_hot_agrees_with_torch() -> None:
    probs = unimix(torch.randn(6, 3, 5) * 2, 0.01)
    ours, theirs = OneHot(probs), OneHotCategorical(probs)
    onehot = theirs.sample()
    torch.testing.assert_close(ours.log_prob(onehot), theirs.log_prob(onehot))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode(), theirs.mode)


@pytest.mark.parametrize(
    "probs",
    [[0.2] * 5, [0.96, 0.01, 0.01, 0.01, 0.01], [0.01, 0.01, 0.01, 0.01, 0.96], [0.1, 0.4, 0.05, 0.4, 0.05]],
)
def test_one_hot_samples_with_the_right_frequencies(probs: list[float]) -> None:
    count = 20_000
    samples = OneHot(torch.tensor(probs).expand(count, 5)).sample()
    assert torch.equal(samples.sum(-1), torch.ones(count)) and torch.equal(samples.max(-1).values, torch.ones(count))
    expected = count * np.array(probs)
    chi2 = ((samples.sum(0).numpy() - expected) ** 2 / expected).sum()
    assert chi2 < 23.5  # 1e-4 quantile of chi-square with 4 degrees of freedom


def test_one_hot_samples_every_categorical_by_itself() -> None:
    """One uniform number shared by all categoricals would give right frequencies and wrong latents."""
    count = 10_000
    samples = OneHot(torch.full((count, 2, 3), 1 / 3)).sample().argmax(-1)
    pairs = torch.bincount(samples[:, 0] * 3 + samples[:, 1], minlength=9).double()
    chi2 = ((pairs - count / 9) ** 2 / (count / 9)).sum().item()
    assert chi2 < 31.8  # 1e-4 quantile with 8 degrees of freedom


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_one_hot_stays_in_range_at_the_ends_of_the_uniform(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cumulative sum of rounded probabilities may stay below 1, and a class of no probability may come first."""
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.full(shape, uniform))
    probs = torch.full((1000, 7), 1 / 7) * (1 - 1e-6)
    index = OneHot(probs).sample().argmax(-1)
    assert torch.equal(index, torch.full((1000,), 0 if uniform == 0 else 6))


@pytest.mark.parametrize("draw", ["sample", "mode"])
def test_straight_through_gradient_is_that_of_the_probabilities(draw: str) -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    weight = torch.randn(4, 5)
    probs = unimix(logits, 0.01)
    drawn = getattr(OneHot(probs), draw)()
    assert torch.equal((drawn > 0.5).sum(-1), torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(drawn.detach(), drawn.detach().round(), atol=1e-6, rtol=0)
    (actual,) = torch.autograd.grad((drawn * weight).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((probs * weight).sum(), logits)
    torch.testing.assert_close(actual, expected)
    assert actual.abs().sum() > 0.1


def test_one_hot_without_gradient_is_exactly_one_hot() -> None:
    drawn = OneHot(unimix(torch.randn(100, 5), 0.01)).sample()
    assert not drawn.requires_grad and set(drawn.unique().tolist()) == {0.0, 1.0}


def test_categorical_kl_sums_over_the_categoricals() -> None:
    p, q = unimix(torch.randn(2, 4, 3, 5) * 2, 0.01)
    expected = kl_divergence(Categorical(probs=p), Categorical(probs=q)).sum(-1)
    actual = categorical_kl(p, q)
    assert actual.shape == (4,)
    torch.testing.assert_close(actual, expected)


def test_unimix_bounds_the_kl() -> None:
    """Raw softmax gives 2e4 nats here (r2dreamer); with 1 % of uniform, at most log(classes / 0.01) each."""
    p, q = unimix(torch.tensor([[[1e4, -1e4, 0, 0]], [[-1e4, 1e4, 0, 0]]]), 0.01)
    kl = categorical_kl(p, q).item()
    assert 5 < kl < math.log(4 / 0.01)
    assert kl == pytest.approx((0.9925 - 0.0025) * math.log(0.9925 / 0.0025), rel=1e-4)


# -- two-hot ----------------------------------------------------------------------------------------------------------


def encoded(target: float, count: int = 255) -> Tensor:
    """The two-hot target that the loss uses, read from its gradient: softmax - target."""
    logits = torch.zeros(count, requires_grad=True)
    (grad,) = torch.autograd.grad(TwoHot(logits).loss(torch.tensor(target)), logits)
    weights = (1 / count - grad.double()).clamp(min=0)
    return torch.where(weights > 1e-8, weights, 0)


def slow_bins(count: int) -> list[float]:
    places = [-20 + 40 * i / (count - 1) for i in range(count)]
    return [math.copysign(math.expm1(abs(x)), x) if abs(x) > 1e-9 else 0.0 for x in places]


def slow_two_hot(target: float, count: int) -> list[float]:
    bins = slow_bins(count)
    out = [0.0] * count
    target = min(max(target, bins[0]), bins[-1])
    for i in range(count - 1):
        if bins[i] <= target <= bins[i + 1]:
            out[i + 1] = (target - bins[i]) / (bins[i + 1] - bins[i])
            out[i] = 1 - out[i + 1]
            break
    return out


@pytest.mark.parametrize("count", [3, 41, 255])
def test_bins_are_symexp_spaced_and_exactly_symmetric(count: int) -> None:
    bins = two_hot_bins(count)
    assert bins.shape == (count,) and bins[count // 2] == 0
    assert torch.equal(bins, -bins.flip(0)) and bool((bins.diff() > 0).all())
    torch.testing.assert_close(bins.double(), torch.tensor(slow_bins(count)).double(), rtol=1e-5, atol=0)
    assert bins[-1].item() == pytest.approx(math.expm1(20), rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 254])
def test_bins_without_a_middle_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        two_hot_bins(count)


@pytest.mark.parametrize("count", [3, 41, 255])
def test_zero_logits_predict_exactly_zero(count: int) -> None:
    for logits in (torch.zeros(count), torch.zeros(1000, count), torch.full((4, 16, count), 3.7)):
        assert torch.equal(TwoHot(logits).mean(), torch.zeros(logits.shape[:-1]))


@pytest.mark.parametrize("sign", [-1, 1])
def test_two_hot_round_trip_in_raw_space(sign: int) -> None:
    """Encoding in symlog space instead would bias a target between two bins by up to 0.3 %."""
    for magnitude in np.logspace(-6, 6, 61):
        target = sign * float(magnitude)
        weights = encoded(target)
        assert int((weights > 0).sum()) <= 2 and float(weights.sum()) == pytest.approx(1, abs=1e-5)
        decoded = TwoHot(weights.log().float()).mean().item()
        assert decoded == pytest.approx(target, rel=1e-4, abs=2e-8)


def test_two_hot_loss_against_a_slow_reference() -> None:
    targets = [-1e9, -1234.5, -1.0, -1e-6, 0.0, 0.3, 1.0, two_hot_bins(41)[25].item(), 99.0, 1e9]
    logits = torch.randn(len(targets), 41) * 2
    logprobs = torch.log_softmax(logits.double(), -1)
    expected = [-sum(w * lp for w, lp in zip(slow_two_hot(t, 41), row, strict=True))
                for t, row in zip(targets, logprobs.tolist(), strict=True)]  # fmt: skip
    actual = TwoHot(logits).loss(torch.tensor(targets))
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


def test_two_hot_mean_against_a_slow_reference() -> None:
    logits = torch.randn(50, 41) * 2
    logits[:, :10] -= 30  # else the outermost bins, 1e8, hide everything
    logits[:, -10:] -= 30
    expected = torch.softmax(logits.double(), -1) @ torch.tensor(slow_bins(41)).double()
    torch.testing.assert_close(TwoHot(logits).mean().double(), expected, rtol=1e-4, atol=1e-4)


def test_two_hot_learns_the_mean_of_its_targets() -> None:
    targets = torch.tensor([-3.0, 0.0, 5.0, 40.0])
    logits = torch.zeros(255, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(150):
        optimizer.zero_grad()
        TwoHot(logits.expand(4, 255)).loss(targets).mean().backward()
        optimizer.step()
    # 1e-9 of probability on the outer bins would already count: what matters is that they are symmetric.
    assert TwoHot(logits.detach()).mean().item() == pytest.approx(10.5, abs=0.1)


def test_two_hot_keeps_the_shape_and_detaches_the_target() -> None:
    logits, target = torch.randn(3, 4, 41, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    distribution = TwoHot(logits)
    assert distribution.mean().shape == distribution.loss(target).shape == (3, 4)
    distribution.loss(target).sum().backward()
    assert target.grad is None and logits.grad is not None
    strided = torch.randn(4, 3).t()
    torch.testing.assert_close(distribution.loss(strided), distribution.loss(strided.contiguous()))


def test_two_hot_loss_of_nan_is_nan() -> None:
    """A NaN reward must be seen, not binned."""
    assert TwoHot(torch.zeros(41)).loss(torch.tensor(float("nan"))).isnan()


def test_two_hot_in_bfloat16_computes_in_float32() -> None:
    logits = torch.randn(5, 41).bfloat16()
    torch.testing.assert_close(TwoHot(logits).mean(), TwoHot(logits.float()).mean())
    assert TwoHot(logits).loss(torch.ones(5)).dtype == torch.float32


def test_bins_made_in_inference_mode_still_learn() -> None:
    """The bins are cached: if the first to ask is an evaluation, training must not inherit its inference tensors."""
    two_hot_bins.cache_clear()
    with torch.inference_mode():
        TwoHot(torch.zeros(41)).mean()
    logits = torch.zeros(41, requires_grad=True)
    TwoHot(logits).mean().backward()
    assert logits.grad is not None


# -- bounded normal ---------------------------------------------------------------------------------------------------


def test_bounded_normal_agrees_with_torch() -> None:
    raw = torch.randn(6, 4, 6) * 3
    ours = BoundedNormal(raw)
    mean, std = np.tanh(raw[..., :3].double().numpy()), raw[..., 3:].double().numpy()
    std = 0.9 / (1 + np.exp(-(std + 2))) + 0.1
    theirs = Independent(Normal(torch.tensor(mean), torch.tensor(std)), 1)
    action = 2 * torch.randn(6, 4, 3)  # far beyond [-1, 1]: no squashing, no clipping
    torch.testing.assert_close(ours.log_prob(action).double(), theirs.log_prob(action.double()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.entropy().double(), theirs.entropy(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.mode().double(), theirs.mean, rtol=1e-5, atol=1e-5)
    assert ours.log_prob(action).shape == ours.entropy().shape == (6, 4)


def test_log_prob_is_that_of_the_unclipped_action() -> None:
    policy = BoundedNormal(torch.tensor([0.9, 0.0]))
    assert policy.log_prob(torch.tensor([3.0])) < policy.log_prob(torch.tensor([1.0])) - 1


@pytest.mark.parametrize(("low", "high"), [(0.1, 1.0), (0.3, 0.5)])
def test_std_stays_between_its_bounds(low: float, high: float) -> None:
    policy = BoundedNormal(torch.tensor([[-100.0, -100.0], [0.0, 0.0], [100.0, 100.0]]), low, high)
    expected = [low, low + (high - low) / (1 + math.exp(-2)), high]
    torch.testing.assert_close(policy.std[:, 0], torch.tensor(expected))
    torch.testing.assert_close(policy.mean[:, 0], torch.tensor([-1.0, 0.0, 1.0]))


def test_noise_scales_std_and_nothing_else() -> None:
    raw = torch.randn(5, 4)
    whole, quarter = BoundedNormal(raw), BoundedNormal(raw, noise=0.25)
    assert torch.equal(whole.mean, quarter.mean) and torch.equal(quarter.std, 0.25 * whole.std)
    action = torch.randn(5, 2)
    truth = torch.distributions.Normal(whole.mean, 0.25 * whole.std).log_prob(action).sum(-1)
    torch.testing.assert_close(quarter.log_prob(action), truth)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_correlated_noise_is_standard_normal_and_fades_as_a_power(correlation: float) -> None:
    drawn = correlated_noise(torch.zeros(50_000, 2), 5, correlation)
    assert drawn.shape == (5, 50_000, 2)
    torch.testing.assert_close(drawn.std((1, 2)), torch.ones(5), atol=0.02, rtol=0)
    covariance = torch.einsum("sba,tba->st", drawn, drawn) / 100_000
    steps = torch.arange(5.0)
    torch.testing.assert_close(covariance, correlation ** (steps[:, None] - steps).abs(), atol=0.02, rtol=0)
    assert (drawn[..., 0] * drawn[..., 1]).mean().abs() < 0.02  # every dimension by itself


def test_the_log_probs_of_a_correlated_trajectory_add_up_to_that_of_the_whole() -> None:
    """The reference: one normal of all steps together, with the covariance written out."""
    steps, batch, width, correlation = 6, 3, 2, 0.7
    raw = torch.randn(steps, batch, 2 * width, requires_grad=True)
    policy = BoundedNormal(raw, noise=0.5)
    actions = policy.sample(correlated_noise(torch.zeros(batch, width), steps, correlation)).detach()
    apart = torch.arange(float(steps))
    alike = correlation ** (apart[:, None] - apart).abs()
    truth = torch.zeros(())
    for b in range(batch):
        for a in range(width):
            spread = torch.diag(policy.std[:, b, a])
            whole = torch.distributions.MultivariateNormal(policy.mean[:, b, a], spread @ alike @ spread)
            truth = truth + whole.log_prob(actions[:, b, a])
    found = policy.log_prob(actions, correlation)
    assert found.shape == (steps, batch)
    torch.testing.assert_close(found.sum(), truth)
    expected, actual = (torch.autograd.grad(told, raw, retain_graph=True)[0] for told in (truth, found.sum()))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_bounded_normal_samples_have_its_moments_and_its_gradient() -> None:
    raw = torch.tensor([[0.5, -1.0, 0.0, -3.0]]).expand(20_000, 4).clone().requires_grad_()
    policy = BoundedNormal(raw)
    samples = policy.sample()
    torch.testing.assert_close(samples.mean(0), policy.mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(samples.std(0), policy.std[0], atol=0.02, rtol=0)
    assert bool((samples.abs() > 1).any())  # raw samples: the environment clips
    (grad,) = torch.autograd.grad(samples.sum(), raw)
    expected = 1 - torch.tanh(raw[:, :2]) ** 2
    torch.testing.assert_close(grad[:, :2], expected)
    noise = (samples - policy.mean) / policy.std
    share = torch.sigmoid(raw[:, 2:] + 2)
    torch.testing.assert_close(grad[:, 2:], noise * 0.9 * share * (1 - share), rtol=1e-4, atol=1e-5)
