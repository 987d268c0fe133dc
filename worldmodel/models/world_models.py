"""The world of World Models (Ha and Schmidhuber 2018): V sees, M remembers and foretells, heads pay and end.

A state is (B, S) with S = D + N + N: the latent z, then the LSTM's output h and its cell c.

    obs      o_0          o_1              o_2
    z        z_0 ~ V(o_0) z_1 ~ V(o_1)     ...          while dreaming z_t ~ the mixture of h_t instead
    h, c     0            LSTM(z_0, a_0)   LSTM(z_1, a_1; h_1, c_1)
    action       a_0          a_1
    state    (z_0, 0, 0)  (z_1, h_1, c_1)  (z_2, h_2, c_2)
    reward   0            r_1              r_2          by heads on the features (z_t, h_t); h_t knows a_{t-1}

z is always a sample, in replay (drawn anew each time), in real life and in dreams: policies and heads meet z with the
same noise everywhere, and M learns the noise that V makes.

Differences from the paper: V, M and the heads are trained together, one pass a batch, on what the agent itself lives
(no gradient of M reaches V); reward and continue are predicted, which the paper's CarRacing does not; observations that
are vectors are part of z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.config import WorldModelsConfig
from worldmodel.distributions import TwoHot
from worldmodel.models.base import Batch, WorldModel
from worldmodel.models.mdn_rnn import MDNRNN, Mixture
from worldmodel.models.observations import masked, reconstruction_loss
from worldmodel.models.vae import VAE, Gaussian, dead_dimensions, floored_kl
from worldmodel.nets import MLP


class VaeMdnRnn(WorldModel):
    """VAE and MDN-RNN as one world.

    Args:
        observations: name -> (H, W, C) of uint8 images (all of one square size) or (N,) of float vectors.
        actions: width A of an action.
        config: sizes; `dropout` is also an attribute, which may be changed to dream with another.
        precision: dtype of matrix multiplications; the LSTM's state, the mixture and losses stay float32.
    """

    def __init__(
        self,
        observations: dict[str, tuple[int, ...]],
        actions: int,
        config: WorldModelsConfig,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        c = config
        self.config, self.precision, self.dropout = config, precision, config.dropout
        self.vae = VAE(observations, c)
        self.memory = MDNRNN(c.latent, actions, c.memory, c.mixtures, c.joint, c.mixture_layers, c.norm)
        if c.random_memory:
            self.memory.from_input.requires_grad_(False)
            self.memory.from_hidden.requires_grad_(False)
        features = c.latent + c.memory
        self.width = features + c.memory
        self.reward = MLP(features, c.units, c.head_layers, c.bins, c.norm, scale=0.0)
        self.cont = MLP(features, c.units, c.head_layers, 1, c.norm)

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.width, device=self.memory.from_input.weight.device)

    def features(self, state: Tensor) -> Tensor:
        return state[..., : self.config.latent] if self.config.see == "z" else self._known(state)

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        with self._cast(state):
            z = self.vae.encode(obs).sample()
            before, hidden, cell = self._split(masked(state, is_first))
            hidden, cell = self.memory(self.memory.embed(before, masked(action, is_first)), hidden, cell)
        return torch.cat([z, masked(hidden, is_first), masked(cell, is_first)], -1)

    def advance(self, state: Tensor, action: Tensor, temperature: float = 1.0) -> Tensor:
        with self._cast(state):
            z, hidden, cell = self._split(state)
            hidden, cell = self.memory(self.memory.embed(z, action), hidden, cell, self.dropout)
            z = self.memory.mixture(hidden, z, action).tempered(temperature).sample()
        return torch.cat([z, hidden, cell], -1)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        with self._cast(state):
            known = self._known(state)
            return TwoHot(self.reward(known)).mean(), torch.sigmoid(self.cont(known).float().squeeze(-1))

    def decode(self, state: Tensor) -> Tensor | None:
        if not self.vae.images:
            return None
        with self._cast(state):
            picture = self.vae.decode(self._split(state)[0])[next(iter(self.vae.images))]
        return torch.sigmoid(picture.float()).permute(0, 3, 1, 2)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        c, (steps, width) = self.config, batch.is_first.shape
        with self._cast(batch.reward):
            posterior = self.vae.encode({name: value.flatten(0, 1) for name, value in batch.obs.items()})
            seen = posterior.sample().unflatten(0, (steps, width))
            chosen = torch.randperm(steps)[: max(1, round(c.decode_share * steps))].sort().values
            pictures = self.vae.decode(seen[chosen].flatten(0, 1))
            z = seen.detach()  # M's gradients end here
            before = torch.cat([self._split(batch.state)[0][None], z[:-1]])
            hidden, cell = self._remember(batch, before)
            mixture = self.memory.mixture(hidden, before, batch.previous_action())
            features = torch.cat([z, hidden], -1)
            reward = TwoHot(self.reward(features)).loss(batch.reward).mean()
            cont = self.cont(features).float().squeeze(-1)
        terms = {"reward": reward, "cont": F.binary_cross_entropy_with_logits(cont, 1 - batch.is_terminal.float())}
        for name, prediction in pictures.items():
            terms[f"rec_{name}"] = reconstruction_loss(prediction, batch.obs[name][chosen].flatten(0, 1)).mean()
        kl = floored_kl(posterior, c.kl_floor)[0].mean()
        terms |= {"kl": c.kl_scale * kl, "mixture": c.mixture_scale * self._surprise(mixture, batch, z)}
        metrics = {f"loss/{name}": term.detach() for name, term in terms.items()}
        states = torch.cat([z, hidden, cell], -1).detach()
        return torch.stack(list(terms.values())).sum(), metrics | self._health(posterior), states

    def _remember(self, batch: Batch, before: Tensor) -> tuple[Tensor, Tensor]:
        """h and c (T, B, N) along a batch whose latents of the step before each are (T, B, D)."""
        _, hidden, cell = self._split(masked(batch.state, batch.is_first[0]))
        embedded = self.memory.embed(*(masked(x, batch.is_first) for x in (before, batch.previous_action())))
        steps = []
        for t, first in enumerate(batch.is_first):
            hidden, cell = self.memory(embedded[t], hidden, cell, self.config.dropout)
            hidden, cell = masked(hidden, first), masked(cell, first)
            steps.append((hidden, cell))
        hiddens, cells = zip(*steps, strict=True)
        return torch.stack(hiddens), torch.stack(cells)

    def _surprise(self, mixture: Mixture, batch: Batch, z: Tensor) -> Tensor:
        """Nats per dimension of z that M had not foreseen; the first step of an episode follows from nothing."""
        nats = -mixture.log_prob(z) / self.config.latent
        return masked(nats[..., None], batch.is_first).sum() / (~batch.is_first).sum().clamp(min=1)

    def _health(self, posterior: Gaussian) -> dict[str, Tensor]:
        raw = floored_kl(posterior, 0.0)[1]
        floor = self.config.kl_floor * self.config.latent
        return {
            "world/kl": raw.mean(),
            "world/kl_at_floor": (raw < floor).float().mean(),
            "world/dead_dimensions": dead_dimensions(posterior.mean),
        }

    def _known(self, state: Tensor) -> Tensor:
        """(z, h) of states (..., S): what the heads see, whatever policies may."""
        return state[..., : self.config.latent + self.config.memory]

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return state.split([self.config.latent, self.config.memory, self.config.memory], -1)

    def _cast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, self.precision, enabled=self.precision != torch.float32)
