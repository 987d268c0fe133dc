"""VAE and MDN-RNN as one world: what flows where in time, what is taught by what, and that it learns to pay and end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rewards import PAID
from tiny import (
    ACTIONS,
    SEEN,
    WORLD_MODELS,
    action,
    agent,
    batch,
    expect_equal,
    observation,
    part,
    state_of,
    vae_mdn_rnn,
)

from worldmodel.agent import build
from worldmodel.config import from_dict, to_dict
from worldmodel.envs import Spaces
from worldmodel.errors import UsageError
from worldmodel.models.base import Batch, dream
from worldmodel.models.rssm import RSSM
from worldmodel.models.vae import dead_dimensions, floored_kl
from worldmodel.models.world_models import VaeMdnRnn
from worldmodel.presets import preset

D, N = WORLD_MODELS.latent, WORLD_MODELS.memory


# -- configuration ----------------------------------------------------------------------------------------------------


def test_configurations_choose_the_world() -> None:
    seen = Spaces(SEEN["both"], False, ACTIONS)
    for kind, expected in (("rssm", RSSM), ("vae-mdn-rnn", VaeMdnRnn)):
        made = agent("both", world={"kind": kind})
        assert type(made.world) is expected
        obs = {name: value.numpy() for name, value in observation("both", 1).items()}
        assert made.step(obs, np.ones(1, bool)).shape == (1, ACTIONS)
    with pytest.raises(UsageError, match=r"--world.kind must be rssm or vae-mdn-rnn, not lstm"):
        agent("both", world={"kind": "lstm"})
    assert type(build(preset("debug"), seen, torch.float32).world) is RSSM


def test_configurations_from_before_there_were_two_worlds_still_load() -> None:
    old = to_dict(preset("carracing"))
    del old["world_models"], old["world"]["kind"]
    assert from_dict(old) == preset("carracing")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("world-models", 1_500_000), ("world-models-cma", 1_500_000), ("world-models-2018", 4_348_547)],
)
def test_presets_build(name: str, parameters: int) -> None:
    config = preset(name)
    seen = {"image": (64, 64, 3)} | ({"score": (20,)} if config.env.read_score else {})
    made = build(config, Spaces(seen, False, 3), torch.float32)
    assert isinstance(made.world, VaeMdnRnn) and made.world.width == 32 + 256 + 256
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in made.world.named_children()}
    assert sizes["vae"] == parameters if name.endswith("2018") else sizes["vae"] < parameters
    layer = (32 + 3 + 256 + 2) * 256 if config.world_models.mixture_layers else 0  # ours; and a bias and a norm
    assert sizes["memory"] == 422_368 + layer
    actor = made.policy.actor if config.policy.kind == "evolution" else made.policy.actor[0][0]
    assert actor.in_features == 288  # the controller's inputs, z and h
    assert "mdn-rnn" in repr(made) and "vae" in repr(made)


def test_an_agent_comes_back_from_disk(tmp_path: Path) -> None:
    made = agent("both", world={"kind": "vae-mdn-rnn"})
    made.save(tmp_path / "agent")
    again = type(made).load(tmp_path / "agent")
    assert again.version == made.version and type(again.world) is VaeMdnRnn


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", SEEN)
def test_states_of_the_loss_are_those_of_observing_step_by_step(seen: str, noiseless: None) -> None:
    made = vae_mdn_rnn(seen)
    whole = batch(made, seen, 6, 4)
    states = made.loss(whole)[2]
    state, previous = whole.state, whole.previous_action()
    for t in range(6):
        state = made.observe(state, previous[t], {n: v[t] for n, v in whole.obs.items()}, whole.is_first[t])
        expect_equal(states[t], state, 1e-4)


def test_memory_knows_the_past_and_not_the_present(noiseless: None) -> None:
    """h_t follows from z_{t-1} and a_{t-1}; the frame of step t moves z_t alone."""
    made = vae_mdn_rnn("image")
    state, taken, first = state_of(made, 4), action(False, 4), torch.zeros(4, dtype=torch.bool)
    one, two = (made.observe(state, taken, observation("image", 4), first) for _ in range(2))
    other = made.observe(state, action(False, 4), observation("image", 4), first)
    assert torch.equal(one[:, D:], two[:, D:]) and bool((one[:, :D] != two[:, :D]).any(-1).all())
    assert bool((one[:, D : D + N] != other[:, D : D + N]).any(-1).all())
    expect_equal(made.advance(state, taken)[:, D:], one[:, D:])  # dreaming remembers as waking does


def test_an_episode_begins_with_empty_memory_even_after_nan(noiseless: None) -> None:
    made = vae_mdn_rnn("image")
    whole = batch(made, "image", 3, 4, firsts=False)
    whole.is_first[0] = True
    lost = part(whole, slice(None), state=torch.full_like(whole.state, torch.nan), before=whole.before * torch.nan)
    loss, _, states = made.loss(lost)
    loss.backward()
    assert not states[0, :, D:].any() and torch.equal(states, made.loss(whole)[2])
    assert all(bool(p.grad.isfinite().all()) for p in made.parameters())
    obs = {n: v[0] for n, v in whole.obs.items()}
    expect_equal(made.observe(lost.state, lost.before, obs, whole.is_first[0]), states[0])


def test_features_are_z_and_h() -> None:
    made = vae_mdn_rnn("image")
    state = state_of(made, 4)
    assert torch.equal(made.features(state), state[:, : D + N]) and made.width == D + 2 * N
    changed = state.clone()
    changed[:, D + N :] += 1  # the cell is not seen, paid or drawn ...
    assert all(torch.equal(a, b) for a, b in zip(made.outcome(state), made.outcome(changed), strict=True))
    assert torch.equal(made.decode(state), made.decode(changed))
    with torch.no_grad():  # ... but remembered
        a, b = (made.advance(s, torch.zeros(4, ACTIONS))[:, D:] for s in (state, changed))
    assert bool((a != b).any(-1).all())


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1])
def test_every_term_of_the_loss(layers: int, noiseless: None) -> None:
    made = vae_mdn_rnn("both", kl_floor=0.1, kl_scale=0.3, mixture_layers=layers, mixture_scale=2.0)
    whole = batch(made, "both", 5, 4)
    loss, metrics, states = made.loss(whole)
    posterior = made.vae.encode({n: v.flatten(0, 1) for n, v in whole.obs.items()})
    total, known = torch.zeros(()), 0
    for t in range(5):
        for b in range(4):
            if not whole.is_first[t, b]:
                before = (states[t - 1] if t else whole.state)[b, :D], (whole.action[t - 1] if t else whole.before)[b]
                total = total - made.memory.mixture(states[t, b, D : D + N], *before).log_prob(states[t, b, :D]) / D
                known += 1
    expect_equal(metrics["loss/mixture"], 2 * total / known, 1e-4)
    kl, raw = floored_kl(posterior, 0.1)
    expect_equal(metrics["loss/kl"], 0.3 * kl.mean(), 1e-4)
    expect_equal(metrics["world/kl"], raw.mean(), 1e-4)
    expect_equal(metrics["world/kl_at_floor"], (raw < 0.1 * D).float().mean())
    expect_equal(metrics["world/dead_dimensions"], dead_dimensions(posterior.mean))
    picture = torch.sigmoid(made.vae.decode(posterior.mean)["image"]) - whole.obs["image"].flatten(0, 1) / 255
    expect_equal(metrics["loss/rec_image"], picture.square().sum() / 20, 1e-3)
    cont = made.outcome(states)[1]
    ended = whole.is_terminal.float()
    expect_equal(metrics["loss/cont"], -(ended * (1 - cont).log() + (1 - ended) * cont.log()).mean(), 1e-4)
    expect_equal(loss, torch.stack([v for n, v in metrics.items() if n.startswith("loss/")]).sum(), 1e-4)


def test_nothing_of_m_teaches_v() -> None:
    made = vae_mdn_rnn("image")
    whole = batch(made, "image", 5, 4)
    torch.manual_seed(1)
    made.loss(whole)[0].backward()
    before = {n: p.grad.clone() for n, p in made.vae.named_parameters()}
    made.zero_grad()
    with torch.no_grad():
        for module in (made.memory, made.reward, made.cont):
            for p in module.parameters():
                p.add_(torch.randn_like(p))
    torch.manual_seed(1)
    made.loss(whole)[0].backward()
    assert all(torch.equal(before[n], p.grad) for n, p in made.vae.named_parameters())


def test_z_is_drawn_anew_each_time() -> None:
    """M must not learn one sample by heart."""
    made = vae_mdn_rnn("image")
    whole = batch(made, "image", 5, 4)
    one, two = (made.loss(whole)[2][..., :D] for _ in range(2))
    assert bool((one != two).all())
    obs, first = {n: v[0] for n, v in whole.obs.items()}, whole.is_first[0]
    real = [made.observe(whole.state, whole.before, obs, first)[:, :D] for _ in range(2)]
    assert bool((real[0] != real[1]).all()), "in real life, too: policies meet the same noise everywhere"


def test_a_batch_of_first_steps_alone_has_nothing_to_foretell() -> None:
    made = vae_mdn_rnn("image")
    whole = batch(made, "image", 3, 2)
    loss, metrics, _ = made.loss(dataclasses.replace(whole, is_first=torch.ones(3, 2, dtype=torch.bool)))
    assert metrics["loss/mixture"] == 0 and bool(loss.isfinite())


# -- dreams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("joint", [False, True])
def test_tempered_dreams(joint: bool, layers: int) -> None:
    made = vae_mdn_rnn("vector", joint=joint, mixture_layers=layers)
    start, plan = state_of(made, 4), action(False, 5, 4)
    step = made.tempered(1e-8).imagine(start, plan[0]).state
    expect_equal(step[:, :D], made.memory.mixture(step[:, D : D + N], start[:, :D], plan[0]).mode(), 1e-3)


def test_dropout_is_for_dreams_and_may_be_changed() -> None:
    made = vae_mdn_rnn("image", dropout=0.5)
    state, taken, first = state_of(made, 4), action(False, 4), torch.zeros(4, dtype=torch.bool)
    obs = observation("image", 4)
    one, two = (made.observe(state, taken, obs, first)[:, D:] for _ in range(2))
    assert torch.equal(one, two), "what really happened is filtered without"
    one, two = (made.advance(state, taken)[:, D:] for _ in range(2))
    assert not torch.equal(one, two)
    made.dropout = 0.0
    one, two = (made.advance(state, taken)[:, D:] for _ in range(2))
    assert torch.equal(one, two)


# -- learning ---------------------------------------------------------------------------------------------------------


def echo(steps: int, width: int, shift: str = "") -> Batch:
    """Choice 1 is paid, and ends the episode, on the next step; neither is seen. Shifts as in test_rewards."""
    chosen = torch.randint(2, (steps + 2, width))
    actions, rewards = torch.eye(2)[chosen], PAID * chosen.float()
    now = slice(1, steps + 1)
    paid = rewards[now] if shift == "reward" else rewards[:steps]
    return Batch(
        obs={"vector": torch.zeros(steps, width, 1)},
        action=actions[:steps] if shift == "action" else actions[now],
        reward=paid,
        is_first=torch.zeros(steps, width, dtype=torch.bool),
        is_terminal=paid > 0,
        state=torch.zeros(width, D + 2 * 16),
        before=torch.zeros(width, 2) if shift == "action" else actions[0],
    )


@pytest.mark.parametrize("shift", ["", "reward", "action"])
def test_dreams_pay_and_end_for_the_action_just_taken(shift: str) -> None:
    """With rewards and ends, or actions, one step off nothing better than a coin can be learned."""
    torch.manual_seed(1)
    made = VaeMdnRnn({"vector": (1,)}, 2, dataclasses.replace(WORLD_MODELS, memory=16, units=16))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(200):
        loss = made.loss(echo(4, 32, shift))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plan = torch.eye(2)[torch.randint(2, (5, 40))]
    with torch.no_grad():
        told = dream(made, made.loss(echo(4, 40))[2][-1], plan, 5)
    reward_error = (told.rewards - PAID * plan[..., 1]).abs().mean() / PAID
    cont_error = (told.conts - plan[..., 0]).abs().mean()
    if shift:
        assert reward_error > 0.3 and cont_error > 0.3
    else:
        assert reward_error < 0.1 and cont_error < 0.1
