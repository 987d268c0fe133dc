"""M of World Models: an LSTM that remembers, and a mixture of Gaussians that says which z may come next.

    z        z_0         z_1         z_2          the LSTM consumes (z_{t-1}, a_{t-1}) and predicts z_t:
    action      a_0         a_1                   h_t knows everything before step t, and nothing of o_t
    h, c     0 ------->  h_1 ------> h_2          h_t, c_t = LSTM((z_{t-1}, a_{t-1}), h_{t-1}, c_{t-1})
    mixture              p(z_1|h_1)  p(z_2|h_2)

Differences from the paper: none in the sizes and the mixture; offered beside them are a joint mixture instead of one
per dimension, and layers between h and the mixture that see z_{t-1} and a_{t-1} as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.nets import MLP, Linear, NormKind

LOWEST = -7.0
"""No log sigma lies below: a mixture that has learned one z by heart would otherwise grow without bound."""


class Mixture:
    """Mixtures of K Gaussians over vectors of D dimensions: one for each dimension, or one for them all.

    Args:
        logits: (..., G, K) before the softmax over the K components. G = D: every dimension has weights of its own and
            draws a component of its own. G = 1: one component is drawn for the whole vector.
        mean: (..., D, K). log_sigma: (..., D, K), the logarithm of the *standard deviation*.
    """

    def __init__(self, logits: Tensor, mean: Tensor, log_sigma: Tensor):
        self.logits, self.mean, self.log_sigma = logits, mean, log_sigma

    def tempered(self, temperature: float) -> Mixture:
        """Logits / temperature, standard deviations times its square root. 1 is the mixture itself, near 0 only the
        mean of the likeliest component is left."""
        if temperature == 1:
            return self
        return Mixture(self.logits / temperature, self.mean, self.log_sigma + 0.5 * math.log(temperature))

    def sample(self) -> Tensor:
        """Samples (..., D), reparametrised within the component that was drawn."""
        probs = torch.softmax(self.logits.detach(), -1)
        uniform = torch.rand(*probs.shape[:-1], 1, device=probs.device)
        # The last component takes what rounding left of the cumulative sum, so the count never reaches K.
        mean, log_sigma = self._component((probs[..., :-1].cumsum(-1) < uniform).sum(-1, keepdim=True))
        return mean + log_sigma.exp() * torch.randn_like(mean)

    def mode(self) -> Tensor:
        """The mean (..., D) of the likeliest component."""
        return self._component(self.logits.argmax(-1, keepdim=True))[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (...) of vectors x (..., D), in nats."""
        z = (x.unsqueeze(-1) - self.mean) * torch.exp(-self.log_sigma)
        parts = -0.5 * z.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)  # (..., D, K)
        if self.logits.shape[-2] == 1:
            parts = parts.sum(-2, keepdim=True)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + parts, -1).sum(-1)

    def _component(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sigma (..., D) of the components `index` (..., G, 1)."""
        index = index.expand(*self.mean.shape[:-1], 1)
        return self.mean.gather(-1, index).squeeze(-1), self.log_sigma.gather(-1, index).squeeze(-1)


class MDNRNN(nn.Module):
    """The LSTM and its mixture head; 422,368 parameters at the sizes of the paper's CarRacing.

    Args:
        latent: D, width of z. actions: A. memory: N, width of the LSTM. mixtures: K. joint: see `Mixture`. layers:
            hidden ones between h and the mixture; with any, it sees (h_t, z_{t-1}, a_{t-1}) instead of h_t alone
            (ours): what is only a step ago need not pass through the memory. norm: of these layers.
    """

    def __init__(
        self, latent: int, actions: int, memory: int, mixtures: int, joint: bool = False, layers: int = 0,
        norm: NormKind = "layer",
    ):  # fmt: skip
        super().__init__()
        self.latent, self.mixtures, self.layers = latent, mixtures, layers
        # One matrix of the gates, split: what z and the action add needs no recurrence.
        fan_in = latent + actions + memory
        self.from_input = Linear(latent + actions, 4 * memory, fan_in=fan_in)
        self.from_hidden = Linear(memory, 4 * memory, bias=False, fan_in=fan_in)
        outputs = (mixtures if joint else latent * mixtures) + 2 * latent * mixtures
        self.head = MLP(fan_in, memory, layers, outputs, norm) if layers else Linear(memory, outputs)

    def embed(self, z: Tensor, action: Tensor) -> Tensor:
        """z (..., D), action (..., A) -> what they add to the gates (..., 4 N)."""
        return self.from_input(torch.cat([z, _clipped(action)], -1))

    def forward(self, embedded: Tensor, hidden: Tensor, cell: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """One step: embedded (B, 4 N), h (B, N), c (B, N) -> the next h and c, float32.

        Dropout falls on the candidate values, so that it never erases memory (Semeniuta et al., arXiv 1603.05118).
        """
        gates = (embedded + self.from_hidden(hidden)).float()
        write, candidate, forget, show = gates.chunk(4, -1)
        candidate = torch.tanh(candidate)
        if dropout:
            candidate = F.dropout(candidate, dropout)
        cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(write) * candidate  # biased to remember
        return torch.sigmoid(show) * torch.tanh(cell), cell

    def mixture(self, hidden: Tensor, before: Tensor, action: Tensor) -> Mixture:
        """The distribution of z_t given h_t (..., N), z_{t-1} (..., D) and a_{t-1} (..., A)."""
        known = torch.cat([hidden, before, _clipped(action)], -1) if self.layers else hidden
        raw, size = self.head(known).float(), self.latent * self.mixtures
        logits, mean, log_sigma = raw.split([raw.shape[-1] - 2 * size, size, size], -1)
        mean, log_sigma = (x.unflatten(-1, (self.latent, self.mixtures)) for x in (mean, log_sigma))
        logits = logits.unflatten(-1, (-1, self.mixtures))
        return Mixture(logits, mean, LOWEST + F.softplus(log_sigma - LOWEST))


def _clipped(action: Tensor) -> Tensor:
    """Components beyond one scaled back, as the environment clips them; their gradient goes on."""
    return action / action.abs().clamp(min=1).detach()
