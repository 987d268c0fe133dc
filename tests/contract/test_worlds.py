"""What every world model must do, whatever it is made of: images, vectors, both; continuous or discrete actions.

A new world joins by one line in `WORLDS`; `test_every_world_of_the_library_is_here` reminds of it.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import re
from collections.abc import Callable

import pytest
import torch
from tiny import (
    ACTIONS,
    POLICY,
    SEEN,
    action,
    batch,
    expect_equal,
    observation,
    part,
    shake,
    state_of,
    tensors,
    vae_mdn_rnn,
    world,
)
from torch import Tensor, nn

import worldmodel.models
from worldmodel.models.base import Batch, Step, WorldModel, dream
from worldmodel.models.ensemble import Ensemble
from worldmodel.models.rssm import RSSM
from worldmodel.models.world_models import VaeMdnRnn
from worldmodel.models.wrappers import Unsure
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.policies.evolution import Controller, population_returns

B, T, H = 4, 5, 3


class Drift(WorldModel):
    """The least that is a world, with an `imagine` of its own: s' = s + W a, and observing halves the state."""

    def __init__(self, seen: str):
        super().__init__()
        self.images, self.width = any(len(shape) == 3 for shape in SEEN[seen].values()), 6
        self.push = nn.Parameter(torch.randn(ACTIONS, self.width))

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.width)

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        seen = torch.stack([v.flatten(1)[:, 0] / (255 if v.dtype == torch.uint8 else 1) for v in obs.values()]).sum(0)
        carried = torch.where(is_first[:, None], 0.0, state + action @ self.push)
        return 0.5 * carried + seen[:, None]

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        state = state + action @ self.push
        return Step(state, state.sum(-1), torch.sigmoid(state[:, 0]))

    def features(self, state: Tensor) -> Tensor:
        return torch.cat([state, state.square()], -1)

    def decode(self, state: Tensor) -> Tensor | None:
        return torch.sigmoid(state[:, :3, None, None].expand(-1, 3, 16, 16)) if self.images else None

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        state, states, previous = batch.state, [], batch.previous_action()
        for t in range(len(batch.reward)):
            obs = {name: value[t] for name, value in batch.obs.items()}
            state = self.observe(state, previous[t], obs, batch.is_first[t])
            states.append(state)
        loss = (torch.stack(states).sum(-1) - batch.reward).square().mean()
        return loss, {"loss/reward": loss.detach()}, torch.stack(states).detach()


def unsure(made: WorldModel) -> Unsure:
    features = made.features(made.initial(1)).shape[-1]
    return Unsure(made, Ensemble(features, ACTIONS, heads=2, units=4).requires_grad_(False))


WORLDS: dict[str, Callable[[str], WorldModel]] = {
    "rssm patch": lambda seen: world(seen),
    "rssm paper": lambda seen: world(seen, vision="paper", norm="rms"),
    "rssm bfloat16": lambda seen: world(seen, precision=torch.bfloat16),
    "rssm tempered": lambda seen: world(seen).tempered(1.5),
    "rssm unsure": lambda seen: unsure(world(seen)),
    "vae-mdn-rnn": lambda seen: vae_mdn_rnn(seen),
    "vae-mdn-rnn joint": lambda seen: vae_mdn_rnn(seen, joint=True),
    "vae-mdn-rnn bfloat16": lambda seen: vae_mdn_rnn(seen, precision=torch.bfloat16),
    "vae-mdn-rnn tempered": lambda seen: vae_mdn_rnn(seen).tempered(1.5),
    "drift": Drift,
    "drift unsure": lambda seen: unsure(Drift(seen)),
}
CASES = [(name, seen) for name in WORLDS for seen in ("image", "vector", "both", "two images")]
ROWS = [
    (case, what)
    for case in CASES
    for what in ("observe", "imagine", "decode", "loss")
    if "bfloat16" not in case[0]  # batches of another size are rounded otherwise: the likeliest latent may be another
    and (what, case[1]) != ("decode", "vector")
]


@pytest.fixture(params=CASES, ids=[f"{name}, {seen}" for name, seen in CASES])
def case(request: pytest.FixtureRequest) -> tuple[WorldModel, str]:
    name, seen = request.param
    return WORLDS[name](seen), seen


@pytest.fixture(params=[False, True], ids=["continuous", "discrete"])
def discrete(request: pytest.FixtureRequest) -> bool:
    return request.param


def start_of(made: WorldModel, seen: str, width: int = B) -> Tensor:
    """States that follow a real observation."""
    first = torch.ones(width, dtype=torch.bool)
    with torch.no_grad():
        return made.observe(made.initial(width), torch.zeros(width, ACTIONS), observation(seen, width), first)


def random_batch(made: WorldModel, seen: str, discrete: bool = False) -> Batch:
    if isinstance(made, (RSSM, VaeMdnRnn)):
        return batch(made, seen, T, B, discrete)
    blank = world(seen)
    whole = batch(blank, seen, T, B, discrete)
    return part(whole, slice(None), state=torch.randn(B, made.initial(1).shape[1]))


def policy_for(made: WorldModel, discrete: bool) -> ActorCritic:
    return shake(ActorCritic(made.features(made.initial(1)).shape[-1], ACTIONS, discrete, POLICY))


def test_every_world_of_the_library_is_here() -> None:
    for module in pkgutil.iter_modules(worldmodel.models.__path__, "worldmodel.models."):
        importlib.import_module(module.name)
    library = {kind for kind in descendants(WorldModel) if kind.__module__.startswith("worldmodel.")}
    here = {type(make("vector")) for make in WORLDS.values()}
    assert library <= here, f"add to WORLDS: {[kind.__name__ for kind in library - here]}"


def descendants(kind: type) -> set[type]:
    return {kind for child in kind.__subclasses__() for kind in {child} | descendants(child)}


# -- shapes and ranges ------------------------------------------------------------------------------------------------


def test_every_world_can_be_driven_by_a_population(case: tuple[WorldModel, str], discrete: bool) -> None:
    """The controller of World Models needs nothing that a world does not promise."""
    made, seen = case
    start = start_of(made, seen)
    controller = shake(Controller(made.features(start).shape[-1], ACTIONS, discrete, noise=0.5))
    told = dream(made, start, controller.act, H)
    assert told.actions.shape == (H, B, ACTIONS) and bool(told.rewards.isfinite().all())
    vectors = torch.stack([controller.vector(), -controller.vector()])
    returns = population_returns(made, start, vectors, H, discrete)
    assert returns.shape == (2, B) and bool(returns.isfinite().all()) and not returns.requires_grad


@pytest.mark.parametrize("width", [B, 1])
def test_shapes_types_and_ranges(case: tuple[WorldModel, str], discrete: bool, width: int) -> None:
    made, seen = case
    initial = made.initial(width)
    state = start_of(made, seen, width)
    assert initial.shape == state.shape and initial.shape[0] == width and initial.ndim == 2
    step = made.imagine(state, action(discrete, width))
    assert step.state.shape == state.shape and step.reward.shape == step.cont.shape == (width,)
    for value in (initial, state, step.state, step.reward, step.cont):
        assert value.dtype == torch.float32 and bool(value.isfinite().all())
    assert bool((step.cont >= 0).all()) and bool((step.cont <= 1).all())
    features = made.features(state)
    assert features.shape[0] == width and features.ndim == 2
    expect_equal(made.features(torch.stack([state, step.state]))[1], made.features(step.state))


def test_decode_is_a_picture_in_zero_one_or_none(case: tuple[WorldModel, str]) -> None:
    made, seen = case
    images = sorted(name for name, shape in SEEN[seen].items() if len(shape) == 3)
    picture = made.decode(start_of(made, seen))
    if not images:
        assert picture is None
        return
    channels = SEEN[seen][images[0]][2]
    assert picture.shape == (B, channels, 16, 16) and picture.dtype == torch.float32
    assert picture.min() >= 0 and picture.max() <= 1 and picture.std() > 0.01


def test_a_world_that_never_ends_says_so(discrete: bool) -> None:
    """cont is a probability, never multiplied by the discount: where nothing ends it is 1, not 0.99."""
    made = world("vector")
    nn.init.constant_(made.cont[-1].bias, 60.0)
    told = dream(made, start_of(made, "vector"), action(discrete, H, B), H)
    assert torch.equal(told.conts, torch.ones(H, B))
    nn.init.constant_(made.cont[-1].bias, -60.0)
    assert dream(made, start_of(made, "vector"), action(discrete, H, B), H).conts.max() < 1e-6


def test_loss_and_its_states(case: tuple[WorldModel, str], discrete: bool) -> None:
    made, seen = case
    whole = random_batch(made, seen, discrete)
    loss, metrics, states = made.loss(whole)
    assert loss.shape == () and bool(loss.isfinite()) and loss.requires_grad
    assert states.shape == (T, B, made.initial(1).shape[1]) and states.dtype == torch.float32
    assert not states.requires_grad and states.grad_fn is None
    assert metrics and all(m.shape == () and not m.requires_grad and bool(m.isfinite()) for m in metrics.values())
    loss.backward()
    learns = made.world if isinstance(made, Unsure) else made  # an ensemble is fitted elsewhere
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learns.parameters())


# -- dreams -----------------------------------------------------------------------------------------------------------


def test_dream_of_a_plan_is_imagining_step_by_step(case: tuple[WorldModel, str], discrete: bool) -> None:
    """With noise: one seed, one dream (torchrl#3236)."""
    made, seen = case
    start, plan = start_of(made, seen), action(discrete, H, B)
    torch.manual_seed(7)
    told = dream(made, start, plan, H)
    torch.manual_seed(7)
    state = start
    assert told.states.shape == (H + 1, *start.shape) and torch.equal(told.states[0], start)
    assert torch.equal(told.actions, plan) and told.rewards.shape == told.conts.shape == (H, B)
    for t in range(H):
        step = made.imagine(state, plan[t])
        expect_equal(told.states[t + 1], step.state)
        low = getattr(made, "precision", torch.float32) == torch.bfloat16
        expect_equal(told.rewards[t], step.reward, 2e-2 if low else 1e-4)
        expect_equal(told.conts[t], step.cont, 1e-2 if low else 1e-5)
        state = step.state
    assert bool((told.states[1:] != told.states[:-1]).any(-1).all())  # imagining goes on


def test_dream_asks_the_policy_about_the_features_of_every_state(case: tuple[WorldModel, str], discrete: bool) -> None:
    made, seen = case
    asked: list[Tensor] = []
    answers = action(discrete, H, B)

    def act(features: Tensor) -> Tensor:
        asked.append(features)
        return answers[len(asked) - 1]

    told = dream(made, start_of(made, seen), act, H)
    assert len(asked) == H and torch.equal(told.actions, answers)
    for t in range(H):
        assert torch.equal(asked[t], made.features(told.states[t]))


@pytest.mark.parametrize("shape", [(H + 1, B), (H - 1, B), (H, B + 1), (H, 1), (B, H)])
def test_a_plan_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    made = world("vector")
    message = f"(horizon, B, A) = ({H}, {B}, A), not ({shape[0]}, {shape[1]}, {ACTIONS})"
    with pytest.raises(ValueError, match=re.escape(message)):
        dream(made, start_of(made, "vector"), torch.zeros(*shape, ACTIONS), H)


def test_gradients_reach_the_actor_through_the_dream(case: tuple[WorldModel, str], discrete: bool) -> None:
    """Discrete too, straight through; a plain sample has none."""
    made, seen = case
    policy = policy_for(made, discrete)
    told = dream(made, start_of(made, seen), policy.act, H)
    for target in (told.rewards[-1], told.conts[-1]):
        grads = torch.autograd.grad(target.sum(), list(policy.actor.parameters()), retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads) and sum(g.abs().sum() for g in grads) > 0
    first = torch.autograd.grad(told.rewards[-1].sum(), told.actions, retain_graph=True, allow_unused=True)[0]
    assert first is None or first[0].any()  # of the first action too, three steps back


def test_a_dream_without_gradient_keeps_no_graph(case: tuple[WorldModel, str], discrete: bool) -> None:
    made, seen = case
    with torch.no_grad():
        told = dream(made, start_of(made, seen), policy_for(made, discrete).act, H)
    assert not any(value.requires_grad for value in told)


# -- filtering --------------------------------------------------------------------------------------------------------


def test_the_first_step_of_an_episode_forgets_the_last_one(case: tuple[WorldModel, str], noiseless: None) -> None:
    made, seen = case
    obs, state, taken = observation(seen, B), start_of(made, seen), action(False, B)
    first = torch.tensor([True, False, True, False])
    fresh = made.observe(made.initial(B), torch.zeros(B, ACTIONS), obs, torch.ones(B, dtype=torch.bool))
    actual = made.observe(state, taken, obs, first)
    expect_equal(actual[first], fresh[first])
    assert bool((actual[~first] != fresh[~first]).any(-1).all())


@pytest.mark.parametrize(("case", "what"), ROWS, indirect=["case"], ids=[f"{a}, {b}, {what}" for (a, b), what in ROWS])
def test_rows_of_a_batch_do_not_know_each_other(case: tuple[WorldModel, str], what: str, noiseless: None) -> None:
    """Permuting the batch permutes the result, and a batch of one gives what the row gives."""
    made, seen = case
    whole = random_batch(made, seen)
    whole.is_first[0] = torch.tensor([True, False, True, False])
    obs = {name: value[0] for name, value in whole.obs.items()}

    def result(rows: list[int]) -> Tensor:
        state, taken = whole.state[rows], whole.before[rows]
        if what == "observe":
            return made.observe(state, taken, {n: v[rows] for n, v in obs.items()}, whole.is_first[0][rows])
        if what == "imagine":
            step = made.imagine(state, taken)
            return torch.cat([step.state, step.reward[:, None], step.cont[:, None]], -1)
        if what == "decode":
            return made.decode(state)
        return made.loss(part(whole, slice(None), rows))[2].transpose(0, 1)

    order, all_rows = [2, 0, 3, 1], result(list(range(B)))
    expect_equal(result(order), all_rows[order], 1e-4)
    for i in range(B):
        expect_equal(result([i])[0], all_rows[i], 1e-4)
    assert bool((all_rows[0] != all_rows[1]).any())


def test_inputs_are_left_as_they_were(case: tuple[WorldModel, str], discrete: bool) -> None:
    made, seen = case
    whole = random_batch(made, seen, discrete)
    kept = copy.deepcopy(whole)
    start, plan = whole.state.clone(), action(discrete, H, B)
    start_kept, plan_kept = start.clone(), plan.clone()
    made.loss(whole)[0].backward()
    made.observe(whole.state, whole.before, {n: v[0] for n, v in whole.obs.items()}, whole.is_first[0])
    told = dream(made, start, plan, H)
    dreamed = [value.clone() for value in told]
    made.decode(start)
    policy_for(made, discrete).loss(told, made.features(told.states))
    assert torch.equal(start, start_kept) and torch.equal(plan, plan_kept)
    assert all(torch.equal(a, b) for a, b in zip(told, dreamed, strict=True))
    before, after = tensors(kept), tensors(whole)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_policy_learns_in_every_world(case: tuple[WorldModel, str], discrete: bool) -> None:
    """Actor and critic get finite gradients from one dream, the world none."""
    made, seen = case
    policy = policy_for(made, discrete)
    _, _, states = made.loss(random_batch(made, seen, discrete))
    with torch.no_grad():
        told = dream(made, states.flatten(0, 1), policy.act, H)
    policy.loss(told, made.features(told.states))[0].backward()
    for net in (policy.actor, policy.critic):
        assert sum(p.grad.abs().sum() for p in net.parameters()) > 0
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    assert all(p.grad is None for p in [*made.parameters(), *policy.slow_critic.parameters()])


def test_state_of_rssm_is_h_and_one_hot_latents() -> None:
    """What `tiny.state_of` makes up is what the world gives."""
    made = world("both")
    for state in (start_of(made, "both"), state_of(made, B), made.imagine(state_of(made, B), action(False, B)).state):
        assert state[:, :16].abs().max() < 1
        latents = state[:, 16:].detach().unflatten(-1, (3, 4))
        expect_equal(latents.sort(-1).values, torch.tensor([0.0, 0, 0, 1]).expand(B, 3, 4), 1e-6)
