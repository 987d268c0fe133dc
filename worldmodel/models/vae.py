"""V of World Models: a variational autoencoder, one frame to one small Gaussian vector z and back.

Differences from the paper: vector observations are encoded into the same z and decoded from it, beside the images; the
default networks are smaller and made for CPUs (`vision="patch"`: a fifth of the parameters). What the paper leaves
out and its code has, the floor under the KL, is here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import WorldModelsConfig
from worldmodel.errors import UsageError
from worldmodel.models.observations import image_shape, stacked_images
from worldmodel.nets import MLP, Linear, PatchDecoder, PatchEncoder, VectorEncoder


class Gaussian:
    """Independent normals.

    Args:
        mean: (..., D). logvar: (..., D), the logarithm of the *variance*: the standard deviation is exp(logvar / 2).
    """

    def __init__(self, mean: Tensor, logvar: Tensor):
        self.mean, self.logvar = mean, logvar

    def sample(self) -> Tensor:
        """Reparametrised samples (..., D)."""
        return self.mean + torch.exp(0.5 * self.logvar) * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """The mean (..., D)."""
        return self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (...) of x (..., D)."""
        squares = (x - self.mean).square() * torch.exp(-self.logvar)
        return -0.5 * (squares + self.logvar + math.log(2 * math.pi)).sum(-1)

    def kl(self) -> Tensor:
        """KL(this || standard normal) in nats, (..., D), of each dimension."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - self.logvar - 1)


class VAE(nn.Module):
    """Observations -> z -> observations.

    Args:
        observations: name -> (H, W, C) of uint8 images (all of one square size) or (N,) of float vectors.
        config: sizes.

    Raises UsageError for images of a size that the networks cannot take.
    """

    def __init__(self, observations: dict[str, tuple[int, ...]], config: WorldModelsConfig):
        super().__init__()
        c, latent = config, config.latent
        self.images = {n: observations[n][2] for n in sorted(observations) if len(observations[n]) == 3}
        vectors = {n: shape[0] for n, shape in sorted(observations.items()) if len(shape) == 1}
        width = len(vectors) * c.units
        if self.images:
            size, channels = image_shape(observations, list(self.images))
            if c.vision == "patch":
                self.offset = 0.5
                self.encoder: nn.Module = PatchEncoder(size, channels, c.depth, c.tokens, c.norm)
                self.decoder: nn.Module = PatchDecoder(latent, size, channels, c.depth, c.norm)
            else:
                self.offset = 0.0
                self.encoder, self.decoder = Encoder2018(size, channels), Decoder2018(latent, channels)
            width += self.encoder.width
        self.encoders = nn.ModuleDict(
            {n: VectorEncoder(d, c.units, c.vector_layers, c.norm) for n, d in vectors.items()}
        )
        self.to_latent = Linear(width, 2 * latent)
        self.decoders = nn.ModuleDict({n: MLP(latent, c.units, c.vector_layers, d, c.norm) for n, d in vectors.items()})

    def encode(self, obs: dict[str, Tensor]) -> Gaussian:
        """The posterior of z, (N, D), in float32, of observations name -> (N, H, W, C) uint8 or (N, V)."""
        out = []
        if self.images:
            out.append(self.encoder(stacked_images(obs, list(self.images)).sub_(self.offset)))
        out += [net(obs[name].float()) for name, net in self.encoders.items()]
        return Gaussian(*self.to_latent(torch.cat(out, -1)).float().chunk(2, -1))

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """(N, D) -> name -> images (N, H, W, C) before the sigmoid, vectors (N, V) in symlog space."""
        out: dict[str, Tensor] = {}
        if self.images:
            pictures = self.decoder(z).split(list(self.images.values()), -1)
            out |= dict(zip(self.images, pictures, strict=True))
        return out | {name: net(z) for name, net in self.decoders.items()}


class Encoder2018(nn.Module):
    """(N, 64, 64, C) in 0 to 1 -> (N, 1024): four convolutions 4x4 of stride 2 without padding, 64-31-14-6-2 pixels.

    Raises UsageError for images that are not 64 x 64.
    """

    width = 1024

    def __init__(self, size: int, channels: int):
        super().__init__()
        if size != 64:
            raise UsageError(f"--world-models.vision 2018 needs --env.image-size 64, not {size}")
        widths = (channels, 32, 64, 128, 256)
        self.convs = nn.ModuleList(_glorot(nn.Conv2d(widths[i], widths[i + 1], 4, 2)) for i in range(4))

    def forward(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2)
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.flatten(1)


class Decoder2018(nn.Module):
    """(N, D) -> (N, 64, 64, C) before the sigmoid: a linear layer and transposed convolutions, 1-5-13-30-64 pixels."""

    def __init__(self, latent: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(latent, 1024)
        widths, kernels = (1024, 128, 64, 32, channels), (5, 5, 6, 6)
        self.convs = nn.ModuleList(
            _glorot(nn.ConvTranspose2d(widths[i], widths[i + 1], kernels[i], 2)) for i in range(4)
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z)[:, :, None, None]  # no activation between the two, as in the original
        for i, conv in enumerate(self.convs):
            x = conv(x) if i == 0 else conv(F.relu(x))
        return x.permute(0, 2, 3, 1)


def floored_kl(posterior: Gaussian, floor: float) -> tuple[Tensor, Tensor]:
    """(KL to the standard normal summed over D and not below D x `floor` nats, the same without floor), (...) each."""
    raw = posterior.kl().sum(-1)
    return raw.clamp(min=floor * posterior.mean.shape[-1]), raw.detach()


def dead_dimensions(mean: Tensor, least: float = 0.01) -> Tensor:
    """How many dimensions of z say nothing: the variance of their posterior mean (N, D) over the batch is below `least`
    (the active units of Burda et al. 2015, arXiv 1509.00519)."""
    return (mean.detach().var(0, correction=0) < least).float().sum()


def _glorot(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """TensorFlow's default initialisation, the original's."""
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv.to(memory_format=torch.channels_last)
