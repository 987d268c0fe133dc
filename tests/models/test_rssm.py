"""What an episode start erases, what the networks see, what stays in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import ACTIONS, SEEN, WORLD, action, batch, expect_equal, observation, part, state_of, world
from torch import Tensor

from worldmodel.distributions import OneHot, unimix
from worldmodel.errors import UsageError
from worldmodel.models.rssm import RSSM

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


def test_is_first_erases_even_what_is_not_finite() -> None:
    made = world("vector")
    broken, first = torch.full((2, made.width), float("nan")), torch.ones(2, dtype=torch.bool)
    assert made.observe(broken, action(False, 2), observation("vector", 2), first).isfinite().all()


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
    made.loss(part(batch(made, "image", 1, 3), slice(None), obs={"image": image[None]}))
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


# -- prior and posterior -----------------------------------------------------------------------------------------------


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
