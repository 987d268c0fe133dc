"""The RSSM against the paper: its block GRU, its losses, what an episode start erases, what a network sees."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    ACTIONS,
    SEEN,
    WORLD,
    action,
    batch,
    expect_equal,
    observation,
    part,
    shake,
    state_of,
    world,
)
from torch import Tensor, nn

from worldmodel.config import preset
from worldmodel.distributions import OneHot, TwoHot, symexp, unimix
from worldmodel.errors import UsageError
from worldmodel.models.base import Batch, dream
from worldmodel.models.rssm import RSSM, BlockGRU, kl_losses, reconstruction_loss
from worldmodel.policies.actor_critic import ActorCritic

# -- the block GRU ----------------------------------------------------------------------------------------------------


def as_the_paper_writes_it(core: BlockGRU, deter: Tensor, stoch: Tensor, action: Tensor, kind: str) -> Tensor:
    """DreamerV3's `_core`, one example and one block at a time, in float64 and from the weights alone.

    Every block is fed its slice of h with all three embedded inputs behind it, through one matrix of its own.
    """
    w = {name: p.detach().double() for name, p in core.named_parameters()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x - x.mean() if kind == "layer" else x
        return x / (x.square().mean() + 1e-4).sqrt() * weight

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def embed(name: str, x: Tensor) -> Tensor:
        return silu(norm(w[f"{name}.0.weight"] @ x + w[f"{name}.0.bias"], w[f"{name}.1.weight"]))

    blocks, wide = core.blocks, deter.shape[-1] // core.blocks
    out = []
    for h, z, a in zip(deter.double(), stoch.double(), action.double(), strict=True):
        a = torch.stack([x / max(1.0, abs(x.item())) for x in a])
        inputs = torch.cat([embed("from_deter", h), embed("from_stoch", z), embed("from_action", a)])
        hidden = []
        for g in range(blocks):
            mine = slice(wide * g, wide * g + wide)
            matrix = torch.cat(
                [w["block_in.weight"][g], w["dense_in.weight"][mine].T]
            )  # (deter / G + 3 hidden, deter / G)
            hidden.append(torch.cat([h[mine], inputs]) @ matrix + w["dense_in.bias"][mine])
        x = silu(norm(torch.cat(hidden), w["norm.weight"]))
        following = []
        for g in range(blocks):
            mine = slice(wide * g, wide * g + wide)
            gates = x[mine] @ w["gates.weight"][g] + w["gates.bias"][3 * wide * g : 3 * wide * (g + 1)]
            reset, candidate, update = gates[:wide], gates[wide : 2 * wide], gates[2 * wide :]
            candidate = torch.tanh(torch.sigmoid(reset) * candidate)
            update = torch.sigmoid(update - 1)
            following.append(update * candidate + (1 - update) * h[mine])
        out.append(torch.cat(following))
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_gru_is_g_small_grus_as_the_paper_writes_them(blocks: int, kind: str) -> None:
    core = shake(BlockGRU(ACTIONS, dataclasses.replace(WORLD, blocks=blocks, norm=kind)), 0.5)
    deter, stoch = torch.rand(3, 16) * 2 - 1, torch.eye(12)[torch.tensor([1, 5, 11])]
    taken = torch.tensor([[0.3, -2.5, 1.0], [4.0, 0.0, -1.0], [0.1, 0.2, 0.3]])
    actual = core(deter, stoch, core.embed_action(taken))
    expect_equal(actual, as_the_paper_writes_it(core, deter, stoch, taken, kind).float())


def test_block_gru_starts_as_the_papers_wide_layer_would() -> None:
    """Two layers stand for one of `deter + 3 hidden blocks` inputs: each must have the variance of the whole."""
    config = dataclasses.replace(WORLD, deter=256, hidden=64, blocks=8)
    core = BlockGRU(2, config)
    sigma = 1 / math.sqrt(256 + 3 * 64 * 8)
    assert core.block_in.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert core.dense_in.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert core.gates.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert core.block_in.bias is None and not core.dense_in.bias.any() and not core.gates.bias.any()


def test_posterior_starts_as_one_layer_on_both_of_its_inputs_would() -> None:
    made = RSSM(SEEN["image"], 2, dataclasses.replace(WORLD, deter=128, hidden=64, tokens=96))
    sigma = 1 / math.sqrt(128 + 96)
    assert made.post_deter.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert made.post_obs.weight.std().item() == pytest.approx(sigma, rel=0.05)


@pytest.fixture
def plain() -> BlockGRU:
    """A GRU whose gates are set by their biases alone: (reset, candidate, update) of every block."""
    core = BlockGRU(ACTIONS, dataclasses.replace(WORLD, deter=8, blocks=2))
    nn.init.zeros_(core.gates.weight)
    return core


def with_gates(core: BlockGRU, reset: float, candidate: float, update: float) -> Tensor:
    """The next deter from 0.5 everywhere."""
    with torch.no_grad():
        core.gates.bias.view(2, 3, 4).copy_(torch.tensor([reset, candidate, update])[None, :, None])
    return core(torch.full((1, 8), 0.5), torch.zeros(1, 12), torch.zeros(1, 8)).detach()


def test_update_gate_is_biased_to_remember(plain: BlockGRU) -> None:
    expect_equal(with_gates(plain, 0.0, 0.0, 0.0), torch.full((1, 8), 0.5 * (1 - 1 / (1 + math.e))))
    expect_equal(with_gates(plain, 0.0, 0.0, -50.0), torch.full((1, 8), 0.5))
    expect_equal(with_gates(plain, 0.0, 0.0, 50.0), torch.zeros(1, 8))


def test_reset_gate_multiplies_the_candidate(plain: BlockGRU) -> None:
    expect_equal(with_gates(plain, 50.0, 0.7, 50.0), torch.full((1, 8), math.tanh(0.7)))
    expect_equal(with_gates(plain, -50.0, 0.7, 50.0), torch.zeros(1, 8))
    expect_equal(with_gates(plain, 0.0, 0.7, 50.0), torch.full((1, 8), math.tanh(0.35)))


def test_actions_are_scaled_back_to_one_by_a_constant() -> None:
    core = shake(BlockGRU(2, WORLD))
    expect_equal(core.embed_action(torch.tensor([[-7.0, 0.5]])), core.embed_action(torch.tensor([[-1.0, 0.5]])))
    beyond = torch.tensor([[4.0, 0.5]], requires_grad=True)
    inside = torch.tensor([[1.0, 0.5]], requires_grad=True)
    for x in (beyond, inside):
        core.embed_action(x).square().sum().backward()
    expect_equal(beyond.grad, inside.grad / torch.tensor([4.0, 1.0]))  # the divisor is a constant


# -- episode starts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", SEEN)
def test_is_first_erases_state_and_action(seen: str, noiseless: None) -> None:
    made = world(seen)
    obs, first = observation(seen, 4), torch.tensor([True, False, True, False])
    fresh = made.observe(made.initial(4), torch.zeros(4, ACTIONS), obs, torch.ones(4, dtype=torch.bool))
    state, before = state_of(made, 4), action(False, 4)
    masked = made.observe(state, before, obs, first)
    expect_equal(masked[first], fresh[first])
    assert bool((masked[~first] != fresh[~first]).any(-1).all())  # so both would show where they are not erased
    only_action = made.observe(made.initial(4), before, obs, first)
    assert torch.equal(only_action[first], masked[first])
    assert bool((only_action[~first] != fresh[~first]).any(-1).all())


def test_a_sequence_across_an_episode_boundary_is_two_sequences(noiseless: None) -> None:
    made = world("both")
    whole = batch(made, "both", steps=7, width=3, firsts=False)
    whole.is_first[3] = True
    first, second = part(whole, slice(0, 3)), part(whole, slice(3, 7), state=state_of(made, 3), before=action(False, 3))
    states, posterior = made._filter(whole)
    alone = [made._filter(half) for half in (first, second)]
    expect_equal(states, torch.cat([half[0] for half in alone]))
    expect_equal(posterior, torch.cat([half[1] for half in alone]))
    whole.is_first[3] = False
    changed = (made._filter(whole)[0] != states).any(-1)
    assert not changed[:3].any() and bool(changed[3:].all())


def test_the_boundary_holds_for_the_loss_too(noiseless: None) -> None:
    made = world("both")
    whole = batch(made, "both", steps=6, width=2, firsts=False)
    whole.is_first[2] = True
    halves = [part(whole, slice(0, 2)), part(whole, slice(2, 6), state=state_of(made, 2), before=action(False, 2))]
    loss, metrics, states = made.loss(whole)
    parts = [made.loss(half) for half in halves]
    expect_equal(states, torch.cat([states for _, _, states in parts]))
    expect_equal(loss, (2 * parts[0][0] + 4 * parts[1][0]) / 6)
    for name in metrics:
        expect_equal(metrics[name], (2 * parts[0][1][name] + 4 * parts[1][1][name]) / 6)


@pytest.mark.parametrize("seen", SEEN)
def test_observing_step_by_step_is_the_scan_of_the_loss(seen: str) -> None:
    """With noise: both draw once a step, so one seed must give one trajectory."""
    made = world(seen)
    whole = batch(made, seen, steps=6, width=3)
    torch.manual_seed(5)
    _, _, scanned = made.loss(whole)
    torch.manual_seed(5)
    state = whole.state
    for t in range(6):
        obs = {name: value[t] for name, value in whole.obs.items()}
        before = whole.before if t == 0 else whole.action[t - 1]
        state = made.observe(state, before, obs, whole.is_first[t])
        expect_equal(state.detach(), scanned[t])


def test_sequences_begin_from_the_remembered_state_and_action(noiseless: None) -> None:
    made = world("vector")
    whole = batch(made, "vector", steps=3, width=4, firsts=False)
    states = made.loss(whole)[2]
    for change in ({"state": state_of(made, 4)}, {"before": action(False, 4)}):
        other = made.loss(part(whole, slice(None), **change))[2]
        assert bool((other != states).any(-1)[0].all())


# -- what the networks see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["patch", "paper"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_images_are_normalised_at_the_network(vision: str, precision: torch.dtype) -> None:
    made = world("image", vision=vision, precision=precision)
    entered: list[Tensor] = []
    made.encoder.image.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].clone()))
    image = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    image[0, 0, 0, 0], image[0, 0, 0, 1], image[0, 0, 0, 2] = 0, 255, 51
    before = image.clone()
    made.observe(made.initial(3), torch.zeros(3, ACTIONS), {"image": image}, torch.ones(3, dtype=torch.bool))
    steps = Batch({"image": image[None]}, torch.zeros(1, 3, ACTIONS), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool),
                  torch.zeros(1, 3, dtype=torch.bool), made.initial(3), torch.zeros(3, ACTIONS))  # fmt: skip
    made.loss(steps)
    assert torch.equal(image, before) and len(entered) == 2
    for seen in entered:
        assert seen.shape == (3, 16, 16, 3) and seen.dtype == precision
        assert seen[0, 0, 0].tolist() == pytest.approx(
            [-0.5, 0.5, -0.3], abs=1e-6 if precision == torch.float32 else 2e-3
        )
        expect_equal(seen.float(), image.float() / 255 - 0.5, 1e-6 if precision == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_images_that_are_not_uint8_are_refused_by_name(dtype: torch.dtype) -> None:
    made = world("two images")
    obs = observation("two images", 2)
    obs["right"] = obs["right"].to(dtype)
    with pytest.raises(TypeError, match=r"'right' must be uint8.*not torch"):
        made.observe(made.initial(2), torch.zeros(2, ACTIONS), obs, torch.ones(2, dtype=torch.bool))


def test_images_of_different_sizes_are_refused_with_the_flag_to_set() -> None:
    with pytest.raises(UsageError, match=r"square and of one size.*--env.image-size"):
        RSSM({"a": (16, 16, 3), "b": (32, 32, 3)}, 2, WORLD)
    with pytest.raises(UsageError, match="square"):
        RSSM({"a": (16, 32, 3)}, 2, WORLD)


@pytest.mark.parametrize("name", ["left", "right"])
def test_every_image_is_seen_and_painted_at_its_own_place(name: str) -> None:
    made = world("two images")
    obs = observation("two images", 1)
    tokens = made.encoder(obs)
    other = dict(obs) | {name: 255 - obs[name]}
    assert bool((made.encoder(other) != tokens).any())
    painted = made.decoder(state_of(made, 1))
    assert painted[name].shape == obs[name].shape
    state = state_of(made, 1)
    channels = {"left": slice(0, 3), "right": slice(3, 4)}[name]  # sorted by name, as the encoder sees them
    expect_equal(made.decoder(state)[name], made.decoder.image(state)[..., channels])


def test_decode_is_the_sigmoid_of_the_first_image_channels_first() -> None:
    made = world("two images")
    state = state_of(made, 2)
    expect_equal(made.decode(state), torch.sigmoid(made.decoder(state)["left"]).permute(0, 3, 1, 2))


# -- the losses -------------------------------------------------------------------------------------------------------


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
        expected = sum((1 / (1 + math.exp(-p)) - t / 255) ** 2
                       for p, t in zip(prediction[n].flatten().tolist(), image[n].flatten().tolist(), strict=True))  # fmt: skip
        assert actual[n].item() == pytest.approx(expected, rel=1e-5)
    predicted, vector = torch.randn(2, 3), torch.tensor([[100.0, -5.0, 0.1], [0.0, 1.0, 2.0]])
    expected = [sum((p - math.copysign(math.log1p(abs(v)), v)) ** 2 for p, v in zip(pp, vv, strict=True))
                for pp, vv in zip(predicted.tolist(), vector.tolist(), strict=True)]  # fmt: skip
    assert reconstruction_loss(predicted, vector).tolist() == pytest.approx(expected, rel=1e-5)


def test_loss_is_the_sum_of_its_terms(noiseless: None) -> None:
    """Every term once more, from the states, with the scales and targets of the paper."""
    made = world("both", dyn_scale=1.0, rep_scale=0.1, free_nats=0.05)
    whole = batch(made, "both", steps=4, width=3)
    loss, metrics, states = made.loss(whole)
    _, posterior = made._filter(whole)
    prior = unimix(made.prior(states[..., :16]).unflatten(-1, (3, 4)), 0.01)
    kl = torch.tensor([slow_kl(p, q) for p, q in zip(posterior, prior, strict=True)])
    pictures = made.decoder(states.flatten(0, 1))
    chance = torch.sigmoid(made.cont(states).squeeze(-1)).clamp(1e-7, 1 - 1e-7)
    goes_on = 1 - whole.is_terminal.float()
    expected = {
        "loss/reward": TwoHot(made.reward(states)).loss(whole.reward).mean(),
        "loss/cont": -(goes_on * chance.log() + (1 - goes_on) * (1 - chance).log()).mean(),
        "loss/rec_image": reconstruction_loss(pictures["image"], whole.obs["image"].flatten(0, 1)).mean(),
        "loss/rec_vector": reconstruction_loss(pictures["vector"], whole.obs["vector"].flatten(0, 1)).mean(),
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


# -- reward alignment: the bug that loss curves hide (dreamer.md 7.3, 8) ----------------------------------------------

PAID = float(symexp(torch.tensor(3 * 20 / 20)))
"""On a bin (41 bins are symexp of whole numbers), so that a perfect prediction has no loss."""


def echo(steps: int, width: int, generator: torch.Generator, shift: str = "") -> Batch:
    """Choices are paid on the next step, and seen nowhere: reward_{t+1} = PAID [action_t = 1].

    `shift="reward"` pays a step too early, `shift="action"` stores actions a step too late.
    """
    chosen = torch.randint(2, (steps + 2, width), generator=generator)
    actions = torch.eye(2)[chosen]
    rewards = PAID * chosen.float()
    now = slice(1, steps + 1)
    return Batch(
        obs={"vector": torch.zeros(steps, width, 1)},
        action=actions[:steps] if shift == "action" else actions[now],
        reward=rewards[now] if shift == "reward" else rewards[:steps],
        is_first=torch.zeros(steps, width, dtype=torch.bool),
        is_terminal=torch.zeros(steps, width, dtype=torch.bool),
        state=torch.zeros(width, ECHO_WIDTH),
        before=torch.zeros(width, 2) if shift == "action" else actions[0],
    )


ECHO_WIDTH = 16 + 3 * 4


def taught(shift: str, updates: int) -> tuple[RSSM, float]:
    """A small RSSM after `updates` on such batches, and its last reward losses (mean, nats)."""
    torch.manual_seed(1)
    made = RSSM({"vector": (1,)}, 2, dataclasses.replace(WORLD, hidden=16, units=16))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(updates):
        loss, metrics, _ = made.loss(echo(4, 32, generator, shift))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["loss/reward"]))
    return made, sum(losses[-10:]) / 10


def dreamed_rewards(made: RSSM) -> tuple[Tensor, Tensor]:
    """(rewards dreamed for random choices, rewards that those choices deserve), (H, B) each."""
    plan = torch.eye(2)[torch.randint(2, (5, 40))]
    start = made.loss(echo(4, 40, torch.Generator().manual_seed(3)))[2][-1]
    with torch.no_grad():
        return dream(made, start, plan, 5).rewards, PAID * plan[..., 1]


def test_the_dream_pays_for_the_action_just_taken() -> None:
    made, loss = taught("", 160)
    assert loss < 0.05
    dreamed, deserved = dreamed_rewards(made)
    assert (dreamed - deserved).abs().mean() < 0.1 * PAID


@pytest.mark.parametrize("shift", ["reward", "action"])
def test_a_shifted_batch_cannot_be_learned(shift: str) -> None:
    """The counterpart: with rewards or actions one step off, nothing below the entropy of a coin is possible."""
    made, loss = taught(shift, 160)
    assert loss > 0.6
    dreamed, deserved = dreamed_rewards(made)
    assert (dreamed - deserved).abs().mean() > 0.3 * PAID


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"), [("1m", 0.69), ("12m", 10.49), ("25m", 23.5), ("50m", 41.7), ("100m", 93.5), ("200m", 165.9)]
)
def test_published_parameter_counts(name: str, millions: float) -> None:
    """dreamer.md 1.1: 64x64x3, 3 continuous actions, the slow critic not counted."""
    config = preset(name)
    with torch.device("meta"):
        made = RSSM({"image": (64, 64, 3)}, 3, config.world)
        policy = ActorCritic(made.width, 3, False, config.policy)
    total = count(made) + count(policy) - count(policy.slow_critic)
    assert total / 1e6 == pytest.approx(millions, rel=0.02)


def test_published_parameter_counts_of_every_part() -> None:
    config = preset("12m")
    with torch.device("meta"):
        made = RSSM({"image": (64, 64, 3)}, 3, config.world)
        policy = ActorCritic(made.width, 3, False, config.policy)
    posterior = count(made.post_obs) + count(made.post_deter) + count(made.post_out)
    parts = {
        "encoder": (count(made.encoder), 0.22), "dynamics": (count(made.core), 4.34), "prior": (count(made.prior), 0.72),
        "posterior": (posterior, 0.92), "decoder": (count(made.decoder), 1.27), "reward": (count(made.reward), 0.72),
        "continue": (count(made.cont), 0.66), "actor": (count(policy.actor), 0.79), "critic": (count(policy.critic), 0.85),
    }  # fmt: skip
    wrong = {n: (c / 1e6, m) for n, (c, m) in parts.items() if abs(c / 1e6 - m) > max(0.02 * m, 0.005)}
    assert wrong == {}
    assert sum(c for c, _ in parts.values()) == count(made) + count(policy) - count(policy.slow_critic)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", ["patch", "paper"])
def test_bfloat16_keeps_states_logits_and_losses_in_float32(vision: str, noiseless: None) -> None:
    low, full = world("both", vision=vision, precision=torch.bfloat16), world("both", vision=vision)
    full.load_state_dict(low.state_dict())
    whole = batch(full, "both", steps=3, width=2)
    loss, metrics, states = low.loss(whole)
    expected, _, _ = full.loss(whole)
    assert states.dtype == loss.dtype == torch.float32 and {m.dtype for m in metrics.values()} == {torch.float32}
    assert loss.item() == pytest.approx(expected.item(), rel=0.1) and loss.item() != expected.item()
    reward, cont = low.outcome(states)
    assert reward.dtype == cont.dtype == low.decode(states[0]).dtype == torch.float32
    loss.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in low.parameters())


def test_latents_are_sampled_from_unimixed_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prior and posterior: no class below unimix / classes, in the scan and in the dream."""
    made = world("vector", unimix=0.2)
    for net in (made.prior[-1], made.post_out[-1]):
        with torch.no_grad():
            net.bias.copy_(torch.tensor([50.0, 0, 0, 0]).repeat(3))
    drawn: list[Tensor] = []
    original = OneHot.sample
    monkeypatch.setattr(OneHot, "sample", lambda self: (drawn.append(self.probs.detach()), original(self))[1])
    whole = batch(made, "vector", steps=2, width=2)
    made.loss(whole)
    made.imagine(whole.state, whole.before)
    assert len(drawn) == 3
    for probs in drawn:
        expect_equal(probs, torch.tensor([0.85, 0.05, 0.05, 0.05]).expand(2, 3, 4))


def test_prior_and_posterior_see_what_they_should(noiseless: None) -> None:
    """The prior of a step is a function of h alone; the posterior of h and the observation."""
    made = world("vector")
    state, taken = state_of(made, 3), action(False, 3)
    deter = made.core(state[:, :16], state[:, 16:], made.core.embed_action(taken))
    expected = OneHot(unimix(made.prior(deter).unflatten(-1, (3, 4)), 0.01)).mode().flatten(1)
    expect_equal(made.advance(state, taken), torch.cat([deter, expected], -1))
    obs = observation("vector", 3)
    logits = made.post_out(F.linear(deter, made.post_deter.weight) + made.post_obs(made.encoder(obs)))
    expected = OneHot(unimix(logits.unflatten(-1, (3, 4)), 0.01)).mode().flatten(1)
    first = torch.zeros(3, dtype=torch.bool)
    expect_equal(made.observe(state, taken, obs, first), torch.cat([deter, expected], -1))
