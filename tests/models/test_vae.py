"""V: the paper's sizes, log-variance as log-variance, sums not means, the floor under the KL."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_sizes import count
from tiny import SEEN, WORLD_MODELS, expect_equal, observation, vae_mdn_rnn
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from worldmodel.config import WorldModelsConfig
from worldmodel.errors import UsageError
from worldmodel.models.observations import reconstruction_loss
from worldmodel.models.vae import VAE, Decoder2018, Encoder2018, Gaussian, dead_dimensions, floored_kl
from worldmodel.presets import preset


def published() -> VAE:
    return VAE({"image": (64, 64, 3)}, preset("world-models-2018").world_models)


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_published_parameter_count() -> None:
    """World Models, appendix A.1: 4,348,547; 755,744 of them encode."""
    with torch.device("meta"):
        made = published()
    assert count(made) == 4_348_547
    assert count(made.encoder) + count(made.to_latent) == 755_744 and count(made.decoder) == 3_592_803


def test_published_shapes_of_every_layer() -> None:
    made, sizes = published(), []
    for module in made.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(lambda m, given, out: sizes.append((out.shape[1], out.shape[2])))
    z = made.encode({"image": torch.zeros(2, 64, 64, 3, dtype=torch.uint8)}).mean
    picture = made.decode(z)["image"]
    assert z.shape == (2, 32) and picture.shape == (2, 64, 64, 3)
    assert sizes[:4] == [(32, 31), (64, 14), (128, 6), (256, 2)]
    assert sizes[4:] == [(128, 5), (64, 13), (32, 30), (3, 64)]


def test_the_default_is_a_fifth_of_it() -> None:
    made = VAE({"image": (64, 64, 3)}, WorldModelsConfig())
    assert 0.15 < count(made) / 4_348_547 < 0.25
    assert made.decode(torch.zeros(1, 32))["image"].shape == (1, 64, 64, 3)


def test_the_original_refuses_other_sizes_by_flag() -> None:
    config = dataclasses.replace(WORLD_MODELS, vision="2018")
    with pytest.raises(UsageError, match=r"--world-models.vision 2018 needs --env.image-size 64, not 96"):
        VAE({"image": (96, 96, 3)}, config)
    with pytest.raises(UsageError, match="multiple of 16"):
        VAE({"image": (20, 20, 3)}, WORLD_MODELS)


def test_the_original_sees_zero_to_one_and_learns() -> None:
    """The whole encoder and decoder get a gradient that is neither zero nor beyond all bounds."""
    made, image = published(), torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    seen: list[Tensor] = []
    made.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    z = made.encode({"image": image}).sample()
    reconstruction_loss(made.decode(z)["image"], image).mean().backward()
    expect_equal(seen[0], image / 255)
    assert isinstance(made.encoder, Encoder2018) and isinstance(made.decoder, Decoder2018)
    assert all(bool(p.grad.isfinite().all()) and p.grad.any() for p in made.parameters())


# -- the Gaussian -----------------------------------------------------------------------------------------------------


def test_log_variance_is_a_log_variance() -> None:
    """ctallec/world-models sampled exp(logsigma) and charged the KL of exp(logsigma / 2): one name, two meanings."""
    mean, logvar = torch.randn(4, 3), torch.randn(4, 3)
    made, truth = Gaussian(mean, logvar), Normal(mean, torch.exp(logvar / 2))
    expect_equal(made.kl(), kl_divergence(truth, Normal(0.0, 1.0)))
    x = torch.randn(4, 3)
    expect_equal(made.log_prob(x), truth.log_prob(x).sum(-1))
    many = Gaussian(torch.full((20_000, 1), 2.0), torch.full((20_000, 1), 3.0)).sample()
    expect_equal(many.mean(), torch.tensor(2.0), 0.1)
    expect_equal(many.var(), torch.tensor(3.0).exp(), 0.05)


def test_kl_below_the_floor_is_free() -> None:
    """0.5 nats a dimension, clipped once, after the sum: 16 nats at 32 dimensions."""
    mean = torch.zeros(3, 32)
    mean[0], mean[1], mean[2, 0] = 0.5, 2.0, 6.0  # 1/8 nat in each dimension; 2 nats in each; 18 nats in one
    mean.requires_grad_(True)
    kl, raw = floored_kl(Gaussian(mean, torch.zeros(3, 32)), 0.5)
    expect_equal(kl, torch.tensor([16.0, 64.0, 18.0]))
    expect_equal(raw, torch.tensor([4.0, 64.0, 18.0]))
    kl.sum().backward()
    assert not mean.grad[0].any() and mean.grad[1].all() and mean.grad[2].count_nonzero() == 1


def test_dead_dimensions_are_counted() -> None:
    """A dimension is dead whose mean does not depend on what is seen, wherever it lies."""
    mean = torch.randn(50, 4)
    mean[:, 1] = 3.0
    mean[:, 3] *= 0.05
    assert dead_dimensions(mean) == 2 and dead_dimensions(mean[:1]) == 4


# -- what it sees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", SEEN)
def test_everything_seen_is_encoded_and_decoded(seen: str) -> None:
    made, obs = vae_mdn_rnn(seen).vae, observation(seen, 3)
    posterior = made.encode(obs)
    assert posterior.mean.shape == posterior.logvar.shape == (3, 6)
    for name in SEEN[seen]:
        other = observation(seen, 3)[name]
        assert bool((made.encode(obs | {name: other}).mean != posterior.mean).any(-1).all()), name
    assert {name: value.shape for name, value in made.decode(posterior.mean).items()} == {
        name: (3, *shape) for name, shape in SEEN[seen].items()
    }


def test_images_that_are_not_uint8_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"image 'image' must be uint8 .*, not torch.float32"):
        vae_mdn_rnn("image").vae.encode({"image": torch.rand(2, 16, 16, 3)})


def test_the_loss_is_a_sum_over_pixels_and_a_mean_over_the_batch() -> None:
    """With the mean over pixels the KL wins and z dies."""
    prediction, truth = torch.zeros(2, 16, 16, 3), torch.full((2, 16, 16, 3), 255, dtype=torch.uint8)
    expect_equal(reconstruction_loss(prediction, truth), torch.full((2,), 0.25 * 16 * 16 * 3), 1e-4)
