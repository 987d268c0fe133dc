"""Distributions of DreamerV3 (arXiv 2301.04104): unimix one-hot, symexp two-hot, bounded normal."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): compresses large magnitudes, the identity near zero."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


def unimix(logits: Tensor, share: float) -> Tensor:
    """Probabilities (..., C): `(1 - share) softmax(logits) + share / C`, which bounds every KL divergence."""
    return torch.softmax(logits.float(), -1).mul(1 - share).add(share / logits.shape[-1])


class OneHot:
    """Independent categoricals as one-hot vectors with straight-through gradients.

    Args:
        probs: (..., C), normalised and positive, as `unimix` gives them.
    """

    def __init__(self, probs: Tensor):
        self.probs = probs

    def sample(self) -> Tensor:
        """One-hot samples (..., C); the gradient is that of the probabilities: onehot + p - stopgrad(p)."""
        probs = self.probs.detach()
        # Inverse transform: one uniform per categorical, several times cheaper on CPU than multinomial or Gumbel noise.
        uniform = torch.rand(*probs.shape[:-1], 1, device=probs.device)
        # The last class takes what rounding left of the cumulative sum, so the count never reaches C.
        index = (probs[..., :-1].cumsum(-1) < uniform).sum(-1, keepdim=True)
        return self._straight_through(index)

    def tempered(self, temperature: float) -> OneHot:
        """Sharper (below 1) or flatter (above 1): logits divided by `temperature`, that is p^(1 / temperature). 1 is
        the distribution itself, near 0 only its mode is left."""
        if temperature == 1:
            return self
        return OneHot(torch.softmax(self.probs.log() / temperature, -1))

    def mode(self) -> Tensor:
        """The likeliest class as one-hot (..., C), with straight-through gradients."""
        return self._straight_through(self.probs.argmax(-1, keepdim=True))

    def log_prob(self, onehot: Tensor) -> Tensor:
        """Log-probability (...) of one-hot vectors (..., C)."""
        return (self.probs.log() * onehot).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats."""
        return torch.special.entr(self.probs).sum(-1)

    def _straight_through(self, index: Tensor) -> Tensor:
        probs = self.probs
        onehot = torch.zeros_like(probs, requires_grad=False).scatter_(-1, index, 1.0)
        return onehot + (probs - probs.detach()) if probs.requires_grad else onehot


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of factorised categoricals, summed over them: probabilities (..., K, C) -> (...)."""
    return (p * (p.log() - q.log())).sum((-2, -1))


class TwoHot:
    """A scalar as a softmax over symexp-spaced bins; targets are split between the two neighbouring bins.

    Encoding and decoding are both linear in raw space (DreamerV3's newest code), so the mean of an encoded target is
    the target itself. Summing from both ends inwards makes a uniform prediction exactly 0 in float32.

    Args:
        logits: (..., N) with N odd; bin (N - 1) / 2 is exactly 0.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits.float()
        self.bins = two_hot_bins(logits.shape[-1]).to(logits.device)

    def mean(self) -> Tensor:
        """The expectation (...)."""
        weighted = torch.softmax(self.logits, -1) * self.bins
        half = self.bins.shape[0] // 2
        return weighted[..., half] + (weighted[..., :half] + weighted[..., half + 1 :].flip(-1)).sum(-1)

    def loss(self, target: Tensor) -> Tensor:
        """Cross entropy (...) in nats between the two-hot target (...) and the prediction."""
        logprobs = torch.log_softmax(self.logits, -1)
        target = target.detach().float().clamp(self.bins[0], self.bins[-1])
        above = torch.searchsorted(self.bins, target.contiguous()).clamp(1, self.bins.shape[0] - 1)
        low, high = self.bins[above - 1], self.bins[above]
        share = (target - low) / (high - low)
        picked = logprobs.gather(-1, torch.stack([above - 1, above], -1))
        return -((1 - share) * picked[..., 0] + share * picked[..., 1])


@functools.cache
@torch.inference_mode(False)  # cached: an evaluation that asks first must not leave inference tensors to training
def two_hot_bins(count: int) -> Tensor:
    """`count` (odd) bins symexp(linspace(-20, 20)), mirrored exactly about 0 so that they sum to 0."""
    if count < 3 or count % 2 == 0:
        raise ValueError(f"two-hot needs an odd number of bins, at least 3, not {count}")
    half = symexp(torch.linspace(-20, 0, count // 2 + 1))
    return torch.cat([half, -half[:-1].flip(0)])


def correlated_noise(like: Tensor, steps: int, correlation: float) -> Tensor:
    """Standard normal noise (steps, ...) of the shape of `like` (...), each step correlated with the one before it: the
    autoregressive process of order one of Korenkevych et al. 2019 (arXiv 1903.11524)."""
    noise = [torch.randn_like(like)]
    for _ in range(steps - 1):
        noise.append(correlation * noise[-1] + math.sqrt(1 - correlation**2) * torch.randn_like(like))
    return torch.stack(noise)


class BoundedNormal:
    """DreamerV3's continuous policy: mean tanh(m), std from sigmoid(s + 2) in [low, high], a plain normal beyond that.

    Samples are not squashed or clipped: the log-probability is that of the raw sample, the environment clips.

    Args:
        raw: (..., 2A), the first half m, the second s. noise: what std is multiplied by after all.
    """

    def __init__(self, raw: Tensor, low: float = 0.1, high: float = 1.0, noise: float = 1.0):
        self.raw_mean, std = raw.float().chunk(2, -1)
        self.mean = torch.tanh(self.raw_mean)
        self.std = noise * ((high - low) * torch.sigmoid(std + 2) + low)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Reparametrised samples (..., A), of standard normal `noise` (..., A) where it is given."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def mode(self) -> Tensor:
        """The mean (..., A)."""
        return self.mean

    def log_prob(self, action: Tensor, correlation: float = 0.0) -> Tensor:
        """Log-density (...) of raw actions (..., A); with a `correlation`, of each of the actions (T, ..., A) of a
        trajectory given those before it, whose noise was `correlated_noise`."""
        z, spread = (action - self.mean) / self.std, self.std
        if correlation:
            rest = math.sqrt(1 - correlation**2)
            z = torch.cat([z[:1], (z[1:] - correlation * z[:-1]) / rest])
            spread = torch.cat([spread[:1], spread[1:] * rest])
        return (-0.5 * z * z - spread.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (...) in nats."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
