"""DreamerV3's recurrent state-space model (arXiv 2301.04104 and its newest code): a block GRU with categorical latents.

A state is (B, S) with S = deter + stoch * classes: the recurrent vector h, then the one-hot latents z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.config import WorldConfig
from worldmodel.distributions import OneHot, TwoHot, categorical_kl, unimix
from worldmodel.models.base import Batch, WorldModel
from worldmodel.models.observations import image_shape, masked, reconstruction_loss, stacked_images
from worldmodel.nets import (
    MLP,
    BlockLinear,
    Linear,
    Norm,
    PaperDecoder,
    PaperEncoder,
    PatchDecoder,
    PatchEncoder,
    VectorEncoder,
    dense,
)


class RSSM(WorldModel):
    """The recurrent state-space model.

    Args:
        observations: name -> (H, W, C) of uint8 images (all of one square size) or (N,) of float vectors.
        actions: width A of an action.
        config: sizes and loss scales.
        precision: dtype of matrix multiplications; norm statistics, logits and losses stay float32.
    """

    feature_bound = 1.0  # h mixes its last value with a tanh, z is one-hot

    def __init__(
        self,
        observations: dict[str, tuple[int, ...]],
        actions: int,
        config: WorldConfig,
        precision: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.config, self.precision = config, precision
        self.encoder = Encoder(observations, config)
        self.core = BlockGRU(actions, config)
        logits = config.stoch * config.classes
        fan_in = config.deter + self.encoder.width
        # The posterior's first layer acts on (h, x). Split in two, the part of x needs no recurrence.
        self.post_obs = Linear(self.encoder.width, config.hidden, fan_in=fan_in)
        self.post_deter = Linear(config.deter, config.hidden, bias=False, fan_in=fan_in)
        self.post_out = nn.Sequential(Norm(config.hidden, config.norm), nn.SiLU(), Linear(config.hidden, logits))
        self.prior = MLP(config.deter, config.hidden, 2, logits, config.norm)
        self.width = config.deter + logits
        self.reward = MLP(self.width, config.units, config.head_layers, config.bins, config.norm, scale=0.0)
        self.cont = MLP(self.width, config.units, config.head_layers, 1, config.norm)
        self.decoder = Decoder(observations, config)

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.width, device=self.post_deter.weight.device)

    def features(self, state: Tensor) -> Tensor:
        return state

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        with self._cast(state):
            x = self.post_obs(self.encoder(obs))
            state, action = masked(state, is_first), masked(action, is_first)
            return self._posterior(state, self.core.embed_action(action), x)[0]

    def advance(self, state: Tensor, action: Tensor, temperature: float = 1.0) -> Tensor:
        with self._cast(state):
            deter = self.core(*self._split(state), self.core.embed_action(action))
            stoch = OneHot(self._categoricals(self.prior(deter))).tempered(temperature).sample()
        return torch.cat([deter, stoch.flatten(1)], -1)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        with self._cast(state):
            reward = TwoHot(self.reward(state)).mean()
            cont = torch.sigmoid(self.cont(state).float().squeeze(-1))
        return reward, cont

    def decode(self, state: Tensor) -> Tensor | None:
        if not self.decoder.images:
            return None
        with self._cast(state):
            picture = self.decoder(self.features(state))[next(iter(self.decoder.images))]
        return torch.sigmoid(picture.float()).permute(0, 3, 1, 2)

    def surprise(self, state: Tensor, obs: dict[str, Tensor]) -> Tensor:
        """KL(posterior || prior) (B,) in nats, raw, at the recurrent part of `state` (B, S): by how much seeing `obs`
        there, name -> (B, ...), would change what is expected."""
        with self._cast(state):
            deter = self._split(state)[0]
            seen = self._categoricals(self.post_out(self.post_deter(deter) + self.post_obs(self.encoder(obs))))
            return categorical_kl(seen, self._categoricals(self.prior(deter)))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        c, (steps, width) = self.config, batch.is_first.shape
        with self._cast(batch.reward):
            states, posterior = self._filter(batch)
            prior = self._categoricals(self.prior(states[..., : c.deter]))  # once, in parallel, outside the scan
            reward = TwoHot(self.reward(states)).loss(batch.reward)
            cont = self.cont(states).float().squeeze(-1)
            chosen = torch.randperm(steps)[: max(1, round(c.decode_share * steps))].sort().values
            pictures = self.decoder(states[chosen].flatten(0, 1))
        cont = F.binary_cross_entropy_with_logits(cont, 1 - batch.is_terminal.float(), reduction="none")
        terms = {"reward": c.reward_scale * reward, "cont": c.cont_scale * cont}
        for name, prediction in pictures.items():
            truth = batch.obs[name][chosen].flatten(0, 1)
            error = reconstruction_loss(prediction, truth).reshape(len(chosen), width)
            terms[f"rec_{name}"] = error if name in self.decoder.images else c.vector_scale * error
        dyn, rep, raw = kl_losses(posterior, prior, c.free_nats)
        terms |= {"dyn": c.dyn_scale * dyn, "rep": c.rep_scale * rep}
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        metrics = {f"loss/{name}": term.detach().mean() for name, term in terms.items()} | {
            "world/kl": raw.mean(),
            "world/kl_at_floor": (raw < c.free_nats).float().mean(),
            "world/prior_entropy": OneHot(prior.detach()).entropy().sum(-1).mean(),
            "world/posterior_entropy": OneHot(posterior.detach()).entropy().sum(-1).mean(),
        }
        return loss, metrics, states.detach()

    def _filter(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The observe scan over a batch: states (T, B, S) and posterior probabilities (T, B, K, C)."""
        steps, width = batch.is_first.shape
        tokens = self.encoder({k: v.flatten(0, 1) for k, v in batch.obs.items()})
        x = self.post_obs(tokens).reshape(steps, width, -1)
        action = self.core.embed_action(masked(batch.previous_action(), batch.is_first))
        state, states, posteriors = batch.state, [], []
        for t in range(steps):
            state, posterior = self._posterior(masked(state, batch.is_first[t]), action[t], x[t])
            states.append(state)
            posteriors.append(posterior)
        return torch.stack(states), torch.stack(posteriors)

    def _posterior(self, state: Tensor, action: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One filtering step; `action` (B, hidden) and `x` (B, hidden) are embedded, episode starts masked already."""
        deter = self.core(*self._split(state), action)
        posterior = self._categoricals(self.post_out(self.post_deter(deter) + x))
        stoch = OneHot(posterior).sample()
        return torch.cat([deter, stoch.flatten(1)], -1), posterior

    def _categoricals(self, logits: Tensor) -> Tensor:
        return unimix(logits.unflatten(-1, (self.config.stoch, self.config.classes)), self.config.unimix)

    def _split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return state[..., : self.config.deter], state[..., self.config.deter :]

    def _cast(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, self.precision, enabled=self.precision != torch.float32)


class BlockGRU(nn.Module):
    """DreamerV3's sequence model: a GRU whose recurrent matrices are block-diagonal.

    Every block sees its own slice of h and all three inputs. The input part is therefore one ordinary linear layer,
    which is how it is computed here: block-diagonal in h, dense in the rest.
    """

    def __init__(self, actions: int, config: WorldConfig):
        super().__init__()
        self.actions, self.blocks = actions, config.blocks
        hidden, deter, norm = config.hidden, config.deter, config.norm
        fan_in = deter + 3 * hidden * config.blocks  # the width of the block layer as DreamerV3 writes it
        self.from_deter = dense(deter, hidden, norm)
        self.from_stoch = dense(config.stoch * config.classes, hidden, norm)
        self.from_action = dense(actions, hidden, norm)
        self.block_in = BlockLinear(deter, deter, config.blocks, bias=False, fan_in=fan_in)
        self.dense_in = Linear(3 * hidden, deter, fan_in=fan_in)
        self.norm = Norm(deter, norm)
        self.gates = BlockLinear(deter, 3 * deter, config.blocks)

    def embed_action(self, action: Tensor) -> Tensor:
        """(..., A) -> (..., hidden); components beyond one are scaled back, as the environment clips them."""
        return self.from_action(action / action.abs().clamp(min=1).detach())

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """(B, deter), (B, stoch * classes), embedded action (B, hidden) -> the next deter (B, deter), float32."""
        inputs = torch.cat([self.from_deter(deter), self.from_stoch(stoch), action], -1)
        x = F.silu(self.norm(self.block_in(deter) + self.dense_in(inputs)))
        gates = self.gates(x).float().unflatten(-1, (self.blocks, 3, -1))
        reset, candidate, update = (gate.flatten(-2) for gate in gates.unbind(-2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)  # biased to remember
        return torch.lerp(deter.float(), candidate, update)


class Encoder(nn.Module):
    """Observations -> (N, width): images side by side on the channels, vectors through MLPs, all concatenated."""

    def __init__(self, observations: dict[str, tuple[int, ...]], config: WorldConfig):
        super().__init__()
        self.images = sorted(name for name, shape in observations.items() if len(shape) == 3)
        self.width = 0
        if self.images:
            size, channels = image_shape(observations, self.images)
            self.image = (
                PatchEncoder(size, channels, config.depth, config.tokens, config.norm)
                if config.vision == "patch"
                else PaperEncoder(size, channels, config.depth, config.norm)
            )
            self.width += self.image.width
        vectors = {name: shape[0] for name, shape in sorted(observations.items()) if len(shape) == 1}
        self.vectors = nn.ModuleDict(
            {n: VectorEncoder(d, config.units, config.vector_layers, config.norm) for n, d in vectors.items()}
        )
        self.width += len(vectors) * config.units

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        out = []
        if self.images:
            out.append(self.image(stacked_images(obs, self.images).sub_(0.5)))
        out += [net(obs[name].float()) for name, net in self.vectors.items()]
        return torch.cat(out, -1) if len(out) > 1 else out[0]


class Decoder(nn.Module):
    """Features (N, F) -> name -> prediction: images (N, H, W, C) before the sigmoid, vectors (N, D) in symlog space."""

    def __init__(self, observations: dict[str, tuple[int, ...]], config: WorldConfig):
        super().__init__()
        c, stoch = config, config.stoch * config.classes
        self.images = {n: observations[n][2] for n in sorted(observations) if len(observations[n]) == 3}
        if self.images:
            size, channels = image_shape(observations, list(self.images))
            self.image = (
                PatchDecoder(c.deter + stoch, size, channels, c.depth, c.norm)
                if c.vision == "patch"
                else PaperDecoder(c.deter, stoch, size, channels, c.depth, c.units, c.norm)
            )
        vectors = {n: shape[0] for n, shape in sorted(observations.items()) if len(shape) == 1}
        self.vectors = nn.ModuleDict(
            {n: MLP(c.deter + stoch, c.units, c.vector_layers, d, c.norm) for n, d in vectors.items()}
        )

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        if self.images:
            pictures = self.image(features).split(list(self.images.values()), -1)
            out |= dict(zip(self.images, pictures, strict=True))
        return out | {name: net(features) for name, net in self.vectors.items()}


def kl_losses(posterior: Tensor, prior: Tensor, free_nats: float) -> tuple[Tensor, Tensor, Tensor]:
    """(dyn, rep, raw KL), each (...), of probabilities (..., K, C); clipped after summing over the K categoricals."""
    dyn = categorical_kl(posterior.detach(), prior)
    rep = categorical_kl(posterior, prior.detach())
    return dyn.clamp(min=free_nats), rep.clamp(min=free_nats), dyn.detach()
