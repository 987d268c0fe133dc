"""The controller, its population in one batched dream, and the search, against slow references and known answers."""

from __future__ import annotations

import warnings

import cma
import numpy as np
import pytest
import torch
from tiny import ACTIONS, expect_equal, shake, state_of, vae_mdn_rnn, world
from torch import Tensor, nn

from worldmodel.agent import build
from worldmodel.envs import Spaces
from worldmodel.models.base import Step, WorldModel, dream
from worldmodel.policies import evolution as module
from worldmodel.policies.evolution import Controller, Population, Search, dreamed_returns, population_returns
from worldmodel.presets import preset

# -- the controller ---------------------------------------------------------------------------------------------------


def test_the_papers_controller_has_867_parameters() -> None:
    made = Controller(288, 3, False)
    assert sum(p.numel() for p in made.parameters()) == len(made.vector()) == 867
    built = build(preset("world-models-2018"), Spaces({"image": (64, 64, 3)}, False, 3), torch.float32)
    assert sum(p.numel() for p in built.policy.parameters()) == 867
    assert "actor" in repr(built) and "867" in repr(built) and "critic" not in repr(built)


def test_it_is_linear_squashed_and_begins_at_zero() -> None:
    """ctallec/world-models has no squash: its actions are unbounded in the dream, and clipped in reality."""
    made, features = Controller(5, ACTIONS, False), 10 * torch.randn(7, 5)
    assert not made.act(features, sample=False).any()
    shake(made, 1.0)
    expected = torch.tanh(features @ made.actor.weight.T + made.actor.bias)
    expect_equal(made.act(features, sample=False), expected, 1e-6)
    assert made.act(features).abs().max() <= 1, "without noise a sample is the action itself"
    assert not any(p.requires_grad for p in made.parameters())


def test_discrete_actions_are_the_largest_output_one_hot() -> None:
    made, features = shake(Controller(5, 4, True), 1.0), torch.randn(2, 7, 5)
    choice = (features @ made.actor.weight.T + made.actor.bias).argmax(-1)
    assert torch.equal(made.act(features), torch.eye(4)[choice])


def test_noise_is_for_samples_only_and_as_large_as_it_says() -> None:
    features = torch.randn(1, 5).expand(20_000, 5)
    made = shake(Controller(5, ACTIONS, False, noise=0.3), 1.0)
    added = made.act(features) - made.act(features, sample=False)
    assert added.std().item() == pytest.approx(0.3, rel=0.05) and added.mean().abs() < 0.01
    made = shake(Controller(5, 4, True, noise=0.4), 1.0)
    drawn, best = made.act(features), made.act(features[:1], sample=False)
    assert torch.equal(drawn.sum(-1), torch.ones(20_000))
    expected = torch.where(best[0] == 1, 0.7, 0.1)  # 0.6 the best, and a quarter of 0.4 each
    expect_equal(drawn.mean(0), expected, 0.02)


def test_a_vector_is_loaded_in_place() -> None:
    made, kept = Controller(5, ACTIONS, False), torch.randn(18)
    held = made.actor.weight.data_ptr()
    made.load_vector(kept.double())
    assert torch.equal(made.vector(), kept) and made.actor.weight.data_ptr() == held


# -- the population ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_a_population_acts_as_its_members_do(discrete: bool) -> None:
    vectors, features = torch.randn(6, 18), torch.randn(6, 4, 5)
    together = Population(vectors, 5, discrete).act(features.flatten(0, 1)).unflatten(0, (6, 4))
    for vector, seen, acted in zip(vectors, features, together, strict=True):
        alone = Controller(5, ACTIONS, discrete)
        alone.load_vector(vector)
        expect_equal(acted, alone.act(seen), 1e-6)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("kind", [world, vae_mdn_rnn], ids=["rssm", "vae-mdn-rnn"])
def test_a_population_dreams_what_its_members_dream_alone(
    kind: type, discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of 5 x 3 dreams in segments of 4 steps; the reference: 5 whole dreams, summed step by step. All members
    meet the same starts and the same noise."""
    monkeypatch.setattr(module, "SEGMENT", 4)
    made = kind("vector")
    start = state_of(made, 3)
    features = made.features(start).shape[-1]
    vectors = torch.randn(5, ACTIONS * (features + 1))
    torch.manual_seed(9)
    together = population_returns(made, start, vectors, 10, discrete)
    for vector, returns in zip(vectors, together, strict=True):
        alone = Controller(features, ACTIONS, discrete)
        alone.load_vector(vector)
        torch.manual_seed(9)
        with torch.no_grad():
            told = dream(made, start, alone.act, 10)
        expected, alive = torch.zeros(3), torch.ones(3)
        for reward, cont in zip(told.rewards, told.conts, strict=True):
            expected += alive * reward
            alive = alive * cont
        expect_equal(returns, expected, 1e-4)
    assert together.std(0).min() > 1e-3, "members differ"


class Script(WorldModel):
    """A state counts steps; rewards are 1, 2, 4, ...; `conts` says how likely it goes on at each step."""

    def __init__(self, conts: list[float]):
        super().__init__()
        self.conts = torch.tensor(conts)

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        index = state[:, 0].long()
        return Step(state + 1, 2.0**index, self.conts[index])

    def features(self, state: Tensor) -> Tensor:
        return state


@pytest.mark.parametrize("segment", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("conts", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], 31.0),
        ([1.0, 1.0, 0.0, 1.0, 1.0], 7.0),  # the reward of the last step counts, none after it
        ([1.0, 0.5, 1.0, 0.5, 0.0], 1 + 2 + 2 + 4 + 4),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 1.0),
    ],
)
def test_returns_are_undiscounted_and_stop_where_the_dream_ends(
    conts: list[float], expected: float, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT", segment)
    returns = dreamed_returns(Script(conts), torch.zeros(3, 1), lambda features: features, 5)
    assert returns.tolist() == [expected] * 3


# -- the search -------------------------------------------------------------------------------------------------------


def quadratic(members: Tensor) -> Tensor:
    """Best at 1, 2, 3, ...: 0; the coordinates matter ever more."""
    goal = torch.arange(1.0, members.shape[1] + 1)
    return -((members - goal).square() * 10 ** (torch.arange(members.shape[1]) / members.shape[1])).sum(-1)


def test_a_quadratic_is_solved() -> None:
    search = Search(8, sigma=1.0, population=16, weight_decay=0.0)
    first = quadratic(search.state["mean"][None])
    for _ in range(200):
        search.generation(quadratic)
    mean = search.state["mean"][None]
    assert quadratic(mean) > 1e-8 * first and search.state["sigma"] < 1e-3


def test_every_generation_goes_on_as_one_uninterrupted_strategy_of_cma() -> None:
    """A new strategy for every generation, from six tensors, does what one strategy does from the first to the last:
    nothing of its state is forgotten. Against another version of cma, this is what would notice."""
    torch.manual_seed(3)
    search = Search(30, sigma=0.5, population=12, weight_decay=0.25)
    for _ in range(25):
        search.generation(quadratic)
    torch.manual_seed(3)
    options = {
        "CMA_diagonal": True, "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA, "popsize": 12, "verbose": -9,
        "randn": lambda *size: torch.randn(*size, dtype=torch.float64).numpy(), "seed": float("nan"),
    }  # fmt: skip
    whole = cma.CMAEvolutionStrategy(np.zeros(30), 0.5, options)
    for _ in range(25):
        asked = whole.ask()
        members = torch.from_numpy(np.stack(asked))
        cost = 0.25 * members.square().mean(-1) - quadratic(members.float()).double()
        whole.tell(asked, cost.tolist())
    found = search.state
    assert np.array_equal(found["mean"].numpy(), whole.mean) and float(found["sigma"]) == whole.sigma
    assert np.array_equal(found["deviations"].numpy(), whole.sigma_vec.scaling)
    assert int(found["generation"]) == 25 and found["deviations"].std() > 0.01


def test_its_state_brings_it_back_to_the_last_bit() -> None:
    search, other = Search(10, population=8), Search(10, population=8)
    for _ in range(3):
        search.generation(quadratic)
    for name, value in other.state.items():
        value.copy_(search.state[name])
    for each in (search, other):
        torch.manual_seed(1)
        for _ in range(3):
            each.generation(quadratic)
    assert all(torch.equal(search.state[name], other.state[name]) for name in search.state)


def test_it_draws_from_torchs_stream_alone_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    before = np.random.get_state()[1].tobytes()
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Search(10, population=8).generation(quadratic)
    assert np.random.get_state()[1].tobytes() == before and capfd.readouterr() == ("", "")
    drawn = torch.rand(1)
    torch.manual_seed(2)
    torch.randn(8, 10, dtype=torch.float64)
    assert torch.equal(torch.rand(1), drawn)


def test_members_are_spread_as_configured_and_decay_prefers_small_ones() -> None:
    seen: list[Tensor] = []

    def flat(members: Tensor) -> Tensor:
        seen.append(members)
        return torch.zeros(len(members))

    search = Search(867, sigma=0.1, population=64, weight_decay=0.01)
    returns = search.generation(flat)
    assert seen[0].shape == (64, 867) and seen[0].dtype == torch.float32 and returns.shape == (64,)
    assert seen[0].std().item() == pytest.approx(0.1, rel=0.02)
    assert returns.unique().tolist() == [0.0], "what the decay takes is not told as a return"
    order = seen[0].square().mean(-1).argsort()
    mean = search.state["mean"].float()
    small, large = (seen[0][rows] @ mean for rows in (order[:16], order[-16:]))
    assert small.mean() > large.mean()


class Homing(WorldModel):
    """(place, target): an action moves by at most 0.2; every step costs the distance to the target."""

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        place = state[:, :1] + 0.2 * action[:, :1] + 0.01 * torch.randn(len(state), 1)
        state = torch.cat([place, state[:, 1:]], -1)
        return Step(state, -(state[:, 0] - state[:, 1]).abs(), torch.ones(len(state)))

    def features(self, state: Tensor) -> Tensor:
        return state


def test_a_controller_learns_to_go_home_in_a_world_that_is_known() -> None:
    """From up to 1 away, at 0.2 a step: a cost near 0 after 5 steps; who does nothing pays for all 20."""
    made, search = Homing(), Search(3, population=12, sigma=0.5)
    for _ in range(40):
        start = 2 * torch.rand(8, 2) - 1
        search.generation(lambda members, start=start: population_returns(made, start, members, 20, False).mean(1))
    start = 2 * torch.rand(200, 2) - 1
    reached = population_returns(made, start, torch.stack([search.state["mean"].float(), torch.zeros(3)]), 20, False)
    distance = (start[:, 0] - start[:, 1]).abs().mean()
    assert -reached[1].mean() > 19 * distance and -reached[0].mean() < 4.5 * distance


def test_controllers_are_modules_others_can_hold() -> None:
    made = Controller(5, ACTIONS, False)
    assert isinstance(made, nn.Module) and set(made.state_dict()) == {"actor.weight", "actor.bias"}
    assert not hasattr(made, "value"), "it has no critic, and does not pretend to"
