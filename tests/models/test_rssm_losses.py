"""Every term of the world's loss once more, slowly: values, clipping, who learns from what, decoding a share."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import ACTIONS, SEEN, WORLD, action, batch, expect_equal, observation, part, state_of, world
from torch import Tensor, nn

from worldmodel.distributions import TwoHot, unimix
from worldmodel.models.observations import _ImageError, reconstruction_loss
from worldmodel.models.rssm import RSSM, kl_losses


def pairs(spread: float, count: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of posterior and prior over `count` categoricals of 4 classes, as leaves."""
    return tuple((spread * torch.randn(2, count, 4)).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def slow_kl(p: Tensor, q: Tensor) -> list[float]:
    return [
        sum(x * math.log(x / y) for a, b in zip(pp, qq, strict=True) for x, y in zip(a, b, strict=True))
        for pp, qq in zip(p.tolist(), q.tolist(), strict=True)
    ]


def test_kl_is_clipped_after_summing_the_latents() -> None:
    """Three latents of 0.4 nats are 1.2 together: clipping each would give 3, or nothing to learn (torchrl#4073)."""
    posterior, prior = pairs(0.6)
    p, q = unimix(posterior, 0.01), unimix(prior, 0.01)
    expected = slow_kl(p, q)
    dyn, rep, raw = kl_losses(p, q, free_nats=0.01)
    assert raw.tolist() == pytest.approx(expected, rel=1e-4) == dyn.tolist() == rep.tolist()
    one = min(expected) + 1e-3
    assert all(k < one for k in slow_kl(p[:, :1], q[:, :1]))  # each latent is below, their sum above
    dyn, _, _ = kl_losses(p, q, free_nats=min(expected) - 1e-3)
    assert dyn.tolist() == pytest.approx(expected, rel=1e-4)
    dyn, rep, raw = kl_losses(p, q, free_nats=100.0)
    assert dyn.tolist() == rep.tolist() == [100.0, 100.0] and raw.tolist() == pytest.approx(expected, rel=1e-4)


def test_kl_below_the_free_nats_has_no_gradient() -> None:
    posterior, prior = pairs(0.1)
    dyn, rep, raw = kl_losses(unimix(posterior, 0.01), unimix(prior, 0.01), 1.0)
    assert bool((raw < 1).all())
    (dyn + rep).sum().backward()
    assert not posterior.grad.any() and not prior.grad.any()


def test_dyn_teaches_the_prior_and_rep_the_posterior() -> None:
    posterior, prior = pairs(3.0)
    p, q = unimix(posterior, 0.01), unimix(prior, 0.01)
    dyn, rep, raw = kl_losses(p, q, 1.0)
    assert bool((raw > 1).all()) and not raw.requires_grad
    teaches = [
        torch.autograd.grad(loss.sum(), (posterior, prior), allow_unused=True, retain_graph=True) for loss in (dyn, rep)
    ]
    assert teaches[0][0] is None and teaches[0][1].abs().sum() > 0.1
    assert teaches[1][1] is None and teaches[1][0].abs().sum() > 0.1


def test_reconstruction_is_the_sum_of_squares_without_a_half() -> None:
    prediction, image = torch.randn(2, 4, 4, 3), torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    actual = reconstruction_loss(prediction, image)
    for n in range(2):
        pixels = zip(prediction[n].flatten().tolist(), image[n].flatten().tolist(), strict=True)
        expected = sum((1 / (1 + math.exp(-p)) - t / 255) ** 2 for p, t in pixels)
        assert actual[n].item() == pytest.approx(expected, rel=1e-5)
    predicted, vector = torch.randn(2, 3), torch.tensor([[100.0, -5.0, 0.1], [0.0, 1.0, 2.0]])
    expected = [sum((p - math.copysign(math.log1p(abs(v)), v)) ** 2 for p, v in zip(pp, vv, strict=True))
                for pp, vv in zip(predicted.tolist(), vector.tolist(), strict=True)]  # fmt: skip
    assert reconstruction_loss(predicted, vector).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_error_of_images_and_its_gradient_are_those_of_the_formula_in_parts_and_at_once(monkeypatch) -> None:
    prediction, image = torch.randn(37, 8, 8, 3), torch.randint(0, 256, (37, 8, 8, 3), dtype=torch.uint8)
    weight = torch.rand(37)
    for chunk in (1, 5 * 8 * 8 * 3, 1 << 16):
        monkeypatch.setattr(_ImageError, "CHUNK", chunk)
        for dtype in (torch.float32, torch.bfloat16):
            ours, plain = (prediction.detach().clone().to(dtype).requires_grad_() for _ in range(2))
            actual = reconstruction_loss(ours, image)
            expected = (torch.sigmoid(plain.float()) - image.float() / 255).square().flatten(1).sum(-1)
            assert torch.allclose(actual, expected, rtol=1e-6)
            (actual * weight).sum().backward()
            (expected * weight).sum().backward()
            assert torch.allclose(ours.grad, plain.grad, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-6)
            assert ours.grad.dtype == dtype


@pytest.mark.parametrize(("rewards", "ends", "vectors"), [(1.0, 1.0, 1.0), (5.0, 20.0, 10.0)])
def test_loss_is_the_sum_of_its_terms(rewards: float, ends: float, vectors: float, noiseless: None) -> None:
    """Every term once more, from the states, with the scales and targets of the paper, and with others."""
    scales = {"dyn_scale": 1.0, "rep_scale": 0.1, "reward_scale": rewards, "cont_scale": ends, "vector_scale": vectors}
    made = world("both", free_nats=0.05, **scales)
    whole = batch(made, "both", steps=4, width=3)
    loss, metrics, states = made.loss(whole)
    _, posterior = made._filter(whole)
    prior = unimix(made.prior(states[..., :16]).unflatten(-1, (3, 4)), 0.01)
    kl = torch.tensor([slow_kl(p, q) for p, q in zip(posterior, prior, strict=True)])
    pictures = made.decoder(states.flatten(0, 1))
    chance = torch.sigmoid(made.cont(states).squeeze(-1)).clamp(1e-7, 1 - 1e-7)
    goes_on = 1 - whole.is_terminal.float()
    expected = {
        "loss/reward": rewards * TwoHot(made.reward(states)).loss(whole.reward).mean(),
        "loss/cont": -ends * (goes_on * chance.log() + (1 - goes_on) * (1 - chance).log()).mean(),
        "loss/rec_image": reconstruction_loss(pictures["image"], whole.obs["image"].flatten(0, 1)).mean(),
        "loss/rec_vector": vectors * reconstruction_loss(pictures["vector"], whole.obs["vector"].flatten(0, 1)).mean(),
        "loss/dyn": kl.clamp(min=0.05).mean(),
        "loss/rep": 0.1 * kl.clamp(min=0.05).mean(),
    }
    assert {name for name in metrics if name.startswith("loss/")} == set(expected)
    for name, value in expected.items():
        expect_equal(metrics[name], value.detach(), 1e-4)
    expect_equal(loss.detach(), torch.stack([v.detach() for v in expected.values()]).sum(), 1e-4)
    expect_equal(metrics["world/kl"], kl.mean(), 1e-4)
    entropy = -(prior * prior.log()).sum((-1, -2)).mean()
    expect_equal(metrics["world/prior_entropy"], entropy.detach(), 1e-4)


def test_reward_and_continue_belong_to_the_state_they_arrive_at(noiseless: None) -> None:
    """Changing the label of step t changes only what is learned at the state of step t."""
    made = world("vector")
    whole = batch(made, "vector", steps=4, width=1, firsts=False)
    scores: list[Tensor] = []
    made.reward.register_forward_hook(lambda _, inputs, output: scores.append(output))
    for t in range(4):
        scores.clear()
        rewards = whole.reward.clone()
        rewards[t] += 3
        grads = []
        for values in (whole.reward, rewards):
            loss = made.loss(part(whole, slice(None), reward=values))[0]
            grads.append(torch.autograd.grad(loss, scores[-1])[0])
        assert (grads[0] != grads[1]).any(-1).flatten().tolist() == [i == t for i in range(4)]


def test_every_weight_learns_from_the_loss() -> None:
    for vision in ("patch", "paper"):
        made = world("both", vision=vision, free_nats=0.0)
        made.loss(batch(made, "both", steps=4, width=3))[0].backward()
        silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
        assert silent == []


@pytest.mark.parametrize("term", ["reward", "cont", "image", "vector", "dyn", "rep"])
def test_every_term_teaches_recurrence_and_encoder(term: str) -> None:
    """All other terms silenced (a head whose last layer is zero passes nothing back): is nothing detached?"""
    made = world("both", free_nats=0.0, dyn_scale=float(term == "dyn"), rep_scale=float(term == "rep"))
    decoder = made.decoder
    heads = {"reward": made.reward[-1], "cont": made.cont[-1], "image": decoder.image.net[-1],
             "vector": decoder.vectors["vector"][-1]}  # fmt: skip
    for name, layer in heads.items():
        if name != term:
            nn.init.zeros_(layer.weight)
    made.loss(batch(made, "both", steps=4, width=3, firsts=False))[0].backward()
    for taught in (
        made.core.gates.weight,
        made.core.from_action[0].weight,
        made.post_obs.weight,
        made.encoder.image.net[1].weight,
    ):
        assert taught.grad is not None and bool(taught.grad.any())
    assert bool(made.prior[-1].weight.grad.any()) == (term == "dyn")


def test_latents_pass_gradients_straight_through() -> None:
    """To the action in a dream, to the observation's layers in the filter."""
    made = world("vector")
    taken = action(False, 3).requires_grad_()
    made.advance(state_of(made, 3), taken)[:, 16:].mul(torch.randn(12)).sum().backward()
    assert bool(taken.grad.any(-1).all())
    seen = made.observe(state_of(made, 3), action(False, 3), observation("vector", 3), torch.zeros(3, dtype=torch.bool))
    seen[:, 16:].mul(torch.randn(12)).sum().backward()
    assert bool(made.post_obs.weight.grad.any()) and made.prior[-1].weight.grad.any()


def test_the_order_of_observations_does_not_matter(noiseless: None) -> None:
    one, other = world("two images"), RSSM(dict(sorted(SEEN["two images"].items())), ACTIONS, WORLD)
    other.load_state_dict(one.state_dict())
    obs, state, first = observation("two images", 2), state_of(one, 2), torch.zeros(2, dtype=torch.bool)
    turned = dict(reversed(obs.items()))
    taken = action(False, 2)
    assert torch.equal(one.observe(state, taken, obs, first), other.observe(state, taken, turned, first))
    assert torch.equal(one.decode(state), other.decode(state))


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_decoding_a_share_of_the_steps_is_unbiased(
    share: float, monkeypatch: pytest.MonkeyPatch, noiseless: None
) -> None:
    """Over all rotations every step is decoded equally often: the mean must be the loss of decoding all steps."""
    full, fewer = world("both"), world("both", decode_share=share)
    fewer.load_state_dict(full.state_dict())
    whole = batch(full, "both", steps=4, width=3)
    loss, expected, _ = full.loss(whole)
    decoded: list[int] = []
    fewer.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0])))
    rotations = []
    for shift in range(4):
        monkeypatch.setattr(torch, "randperm", lambda n, s=shift: (torch.arange(n) + s) % n)
        rotations.append(fewer.loss(whole))
    assert decoded == [4 * share * 3] * 4
    expect_equal(torch.stack([r[0] for r in rotations]).mean(), loss)
    for name in ("loss/rec_image", "loss/rec_vector"):
        values = torch.stack([metrics[name] for _, metrics, _ in rotations])
        expect_equal(values.mean(), expected[name])
        assert values.std() > 1e-4


def test_every_step_is_decoded_sometimes() -> None:
    made = world("vector", decode_share=0.5)
    whole = batch(made, "vector", steps=6, width=1, firsts=False)  # no two states are alike
    decoded: list[Tensor] = []
    made.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0].detach()))
    times = torch.zeros(6)
    for _ in range(60):
        states = made.loss(whole)[2][:, 0]
        times += (states[:, None] == decoded[-1][None]).all(-1).any(-1)
    assert times.sum() == 180 and times.min() > 15 and times.max() < 45
