"""An ensemble of small heads that predict the next features of any world: where they disagree, little was seen.

The one-step ensemble of Plan2Explore (Sekar et al. 2020, arXiv 2005.05960, section 3.2): K networks learn the same
target from the same states and differ in their initial weights and in the data they were shown. Where experience was
plenty they agree; the variance over them is the uncertainty that more experience would remove, unlike the entropy of
the world's own prior, which an unforeseeable future keeps high for ever.

    state       s_t ------> s_t+1           of a recorded real episode: posteriors
    features    f_t         f_t+1
    action            a_t
    head k      (f_t, a_t) -> f_t+1         K predictions; disagreement: their variance

Differences from the paper: the target is the whole next feature vector (every world has one; the paper takes the
encoder's embedding or the stochastic part), there are fewer and smaller heads (paper: 10 of 400 units), and each sees
a bootstrap resample of the data instead of the same batches.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import UsageError
from worldmodel.randomness import generator

HEADS = 5
"""Fewest that the literature takes (PETS, arXiv 1805.12114: 5; Plan2Explore: 10)."""


class Ensemble(nn.Module):
    """K independent networks (features (N, F), action (N, A)) -> next features (N, F), computed side by side.

    Two hidden layers of SiLU. Inputs and targets are measured in units of `scale`, see `measure`.

    Args:
        features: width F. actions: width A. heads: K, at least 2. units: of the hidden layers. seed: of the initial
            weights, different for every head; the global generators are not touched.

    Raises UsageError for fewer than two heads, which cannot disagree.
    """

    def __init__(self, features: int, actions: int, *, heads: int = HEADS, units: int = 64, seed: int = 0):
        super().__init__()
        if heads < 2:
            raise UsageError(f"an ensemble needs at least 2 heads to disagree, got {heads}")
        noise, widths = generator(seed, heads), [features + actions, units, units, features]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise(widths):
            self.weights.append(nn.Parameter(torch.randn(heads, a, b, generator=noise) / math.sqrt(a)))
            self.biases.append(nn.Parameter(torch.zeros(heads, 1, b)))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @property
    def heads(self) -> int:
        """K."""
        return len(self.weights[0])

    def measure(self, features: Tensor) -> None:
        """Takes the units of inputs and targets from `features` (N, F): centred, and divided by
        sqrt(variance + mean variance of all dimensions).

        A dimension's weight thus lies between 0 and 1 times the usual: hardly moving ones, such as a class that
        occurs once in a thousand steps, are not blown up to be as loud as the others.
        """
        variance = features.var(0, correction=0)
        self.mean.copy_(features.mean(0))
        self.scale.copy_((variance + variance.mean()).sqrt().clamp(min=1e-8))

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """(N, F), (N, A) -> (K, N, F): every head's prediction of the next features, in units of `scale`.

        Heads may be given batches of their own: (K, N, F), (K, N, A).
        """
        x = torch.cat([self.scaled(features), action], -1).expand(self.heads, -1, -1)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = F.silu(x) if i < last else x
        return x

    def scaled(self, features: Tensor) -> Tensor:
        """(..., F), centred and in units of `scale`."""
        return (features - self.mean) / self.scale

    def disagreement(self, features: Tensor, action: Tensor) -> Tensor:
        """D (N,), at least 0: the variance over the K heads, averaged over the F dimensions (Plan2Explore, eq. 3)."""
        return self(features, action).var(0, correction=0).mean(-1)


def fit(
    features: Tensor, action: Tensor, following: Tensor, *, heads: int = HEADS, units: int = 64, steps: int = 300,
    batch: int = 64, rate: float = 1e-3, seed: int = 0,
) -> Ensemble:  # fmt: skip
    """Trains an ensemble on N transitions: features (N, F) under action (N, A) became `following` (N, F).

    Every head learns from a resample (N with replacement) of its own, in batches of its own; Adam on the squared error.
    The same seed, the same ensemble; no global generator is drawn from. Seconds for a few thousand transitions.
    Raises UsageError without any.
    """
    count = len(features)
    if not count:
        raise UsageError("an ensemble needs at least one transition to learn from")
    ensemble = Ensemble(features.shape[-1], action.shape[-1], heads=heads, units=units, seed=seed).to(features.device)
    noise = generator(seed, heads, count)
    ensemble.measure(features)
    shown = torch.randint(count, (heads, count), generator=noise)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=rate)
    with torch.enable_grad():
        for _ in range(steps):
            rows = shown.gather(1, torch.randint(count, (heads, batch), generator=noise)).to(features.device)
            error = ensemble(features[rows], action[rows]) - ensemble.scaled(following[rows])
            loss = error.square().mean((1, 2)).sum()  # heads share nothing: each has its own gradient
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return ensemble.requires_grad_(False).eval()
