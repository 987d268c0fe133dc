"""The learner that evolves: who learns when and from what, and that runs, checkpoints and tools know no difference."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Told, content, metrics, opened, tiny, train
from tiny import ACTIONS, SEEN, batch, config, shake
from torch import Tensor

import worldmodel.train.world_models as module
from worldmodel import load
from worldmodel.cli import main
from worldmodel.config import TRACKS, Config, EvolutionConfig, PolicyConfig, WorldModelsConfig
from worldmodel.envs import Spaces
from worldmodel.errors import NumericalError
from worldmodel.eval.real import evaluate
from worldmodel.models.base import Batch
from worldmodel.policies.evolution import population_returns
from worldmodel.train.clock import Clock
from worldmodel.train.dreamer import Dreamer
from worldmodel.train.learner import learner
from worldmodel.train.schedule import Pace
from worldmodel.train.world_models import WorldModels

SMALL = WorldModelsConfig(latent=6, depth=4, tokens=16, memory=16, mixtures=3, units=16, bins=41)
NAN = float("nan")


def made(**overrides: Any) -> WorldModels:
    """A tiny learner with a random world; a round follows every second update from the first on."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"policy": {"kind": "evolution"}, "world": {"kind": "vae-mdn-rnn"}, "pretrain": 1}
    out = learner(config(**settings | overrides), Spaces(SEEN["vector"], False, ACTIONS), "cpu", Clock())
    assert type(out) is WorldModels
    shake(out.agent.world)
    return out


def experience(taught: WorldModels) -> Batch:
    return batch(taught.agent.world, "vector", 5, 4)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def generations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """(world, starts, members, horizon, discrete, returns) of every generation."""
    seen: list[tuple[Any, ...]] = []

    def watched(*args: Any) -> Tensor:
        returns = population_returns(*args)
        seen.append((*args, returns))
        return returns

    monkeypatch.setattr(module, "population_returns", watched)
    return seen


# -- an update --------------------------------------------------------------------------------------------------------


def test_the_kind_decides_who_learns() -> None:
    spaces = Spaces(SEEN["vector"], False, ACTIONS)
    assert type(learner(config(), spaces, "cpu", Clock())) is Dreamer
    assert type(learner(config(policy={"kind": "evolution"}), spaces, "cpu", Clock())) is WorldModels


@pytest.mark.parametrize("kind", ["rssm", "vae-mdn-rnn"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_update_teaches_the_world_and_a_round_the_controller(kind: str, precision: str) -> None:
    taught = made(world={"kind": kind, "free_nats": 0.0}, world_models={"kl_floor": 0.0}, precision=precision)
    before = copied(taught.tensors())
    told, states = taught.update(experience(taught))
    assert all(m.shape == () and bool(m.isfinite()) and not m.requires_grad for m in told.values())
    assert {"evolution/return", "evolution/best", "evolution/sigma", "optim/world_rate"} <= set(told)
    assert states.shape == (5, 4, taught.agent.world.width) and taught.updates == 1
    after = copied(taught.tensors())
    assert set(after) - changed(before, after) == set()
    taught.update(experience(taught))
    moved = changed(after, taught.tensors())
    assert {name for name in moved if name.startswith(("live.policy", "search."))} == set(), "no round was due"
    assert any(name.startswith("live.world") for name in moved)


@pytest.mark.parametrize(
    ("pretrain", "every", "expected"), [(0, 3, [3, 6, 9]), (1, 4, [1, 5, 9]), (4, 2, [4, 6, 8, 10]), (20, 1, [])]
)
def test_rounds_begin_when_the_pretraining_ends(
    pretrain: int, every: int, expected: list[int], generations: list[Any]
) -> None:
    """The controller that first acts has evolved already."""
    taught = made(pretrain=pretrain, evolution={"every": every, "generations": 2})
    rounds, before = [], 0
    for update in range(1, 11):
        told, _ = taught.update(experience(taught))
        if len(generations) > before:
            rounds.append(update)
            assert len(generations) - before == 2
        before = len(generations)
        assert ("evolution/return" in told) == bool(rounds)
    assert rounds == expected


def test_the_controller_that_acts_is_the_mean_of_the_search_not_its_luckiest_member(generations: list[Any]) -> None:
    """Flydexo/ha_schmidhuber reports the best of all generations and members: a maximum of noise."""
    taught = made()
    taught.update(experience(taught))
    ((*_, members, _, _, returns),) = generations
    acting = taught.agent.policy.vector()
    assert torch.equal(acting, taught.search.state["mean"].float()) and bool(acting.any())
    assert members.shape == (6, len(acting)) and not (members == acting).all(-1).any()
    weights = torch.linalg.lstsq(members.T.double(), acting.double()[:, None]).solution[:, 0]
    better = returns.mean(1).argsort(descending=True)[:3]
    assert weights[better].min() > 0.05 and weights.sum().item() == pytest.approx(1, abs=1e-4)
    assert taught.told["best"] == returns.mean(1).max(), "several dreams a member, and their mean counts"


def test_a_generation_dreams_from_living_states_of_the_batch_drawn_anew(generations: list[Any]) -> None:
    taught = made(evolution={"generations": 8, "starts": 3, "horizon": 4})
    given = experience(taught)
    assert 0 < int(given.is_terminal.sum()) < given.is_terminal.numel() - 3
    _, states = taught.update(given)
    living = {tuple(row.tolist()) for row in states[~given.is_terminal]}
    drawn = [[tuple(row.tolist()) for row in starts] for _, starts, *_ in generations]
    assert all(len(set(rows)) == 3 and set(rows) <= living for rows in drawn)
    assert len({frozenset(rows) for rows in drawn}) > 4
    assert {(world, horizon) for world, _, _, horizon, *_ in generations} == {(taught.agent.world, 4)}


def test_a_batch_in_which_everything_is_over_teaches_the_world_alone(generations: list[Any]) -> None:
    taught = made()
    given = experience(taught)
    given.is_terminal[:] = True
    taught.update(given)
    assert not generations and taught.updates == 1


def test_dreams_are_sampled_at_their_temperature(generations: list[Any]) -> None:
    taught = made(policy={"kind": "evolution", "temperature": 1.3})
    taught.update(experience(taught))
    assert generations[0][0] is taught.dreamed and taught.dreamed.temperature == 1.3


def test_tensors_bring_everything_back() -> None:
    taught, other = made(), made()
    first, second = experience(taught), experience(taught)
    taught.update(first)
    other.load_tensors(copied(taught.tensors()), taught.updates)
    for each in (taught, other):
        torch.manual_seed(8)
        each.update(second)
        each.update(first)
    assert changed(taught.tensors(), other.tensors()) == set() and other.due() == taught.due()


@pytest.mark.parametrize("what", ["dreams", "gradient"])
def test_what_is_not_finite_is_named_and_nothing_learns_from_it(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = made(evolution={"generations": 2})
    given = experience(taught)
    taught.update(given)
    taught.update(given)
    before = copied(taught.tensors())
    if what == "dreams":
        calls: list[int] = []
        real: Callable[..., Tensor] = population_returns

        def late(*args: Any) -> Tensor:
            calls.append(1)
            return real(*args) * (NAN if len(calls) == 2 else 1)

        monkeypatch.setattr(module, "population_returns", late)
    else:
        taught.agent.world.memory.head.weight.register_hook(lambda grad: grad * NAN)
    named = r"^evolution/return" if what == "dreams" else r"^gradient of world\.memory\.head\.weight"
    with pytest.raises(NumericalError, match=named):
        taught.update(given)
    assert changed(before, taught.tensors()) == set() and taught.updates == 2


def test_timing_a_round_leaves_no_trace() -> None:
    taught = made(evolution={"every": 4, "generations": 2})
    before, random = copied(taught.tensors()), torch.get_rng_state()
    assert 0 < taught.now_and_then() < 5
    assert changed(before, taught.tensors()) == set() and torch.equal(random, torch.get_rng_state())


# -- Tallec's controls ------------------------------------------------------------------------------------------------


def test_a_random_memory_stays_as_it_is_and_is_read() -> None:
    taught = made(world_models={"random_memory": True})
    before = copied(taught.agent.weights())
    taught.update(experience(taught))
    moved = changed(before, taught.agent.weights())
    same = set(before) - moved
    assert same == {name for name in before if name.startswith(("world.memory.from_input", "world.memory.from_hidden"))}


def test_a_random_memory_stays_so_beside_an_actor_that_learns_through_the_dynamics() -> None:
    settings = config(
        world={"kind": "vae-mdn-rnn"}, world_models={"random_memory": True}, policy={"gradient": "dynamics"}
    )
    taught = learner(settings, Spaces(SEEN["vector"], False, ACTIONS), "cpu", Clock())
    for _ in range(2):
        taught.update(batch(taught.agent.world, "vector", 5, 4))
    fixed = {name for name, p in taught.agent.world.named_parameters() if not p.requires_grad}
    assert fixed == {"memory.from_input.weight", "memory.from_input.bias", "memory.from_hidden.weight"}


def test_a_controller_that_sees_the_picture_alone() -> None:
    taught = made(world_models={"see": "z"})
    assert taught.agent.policy.actor.in_features == 6
    taught.update(experience(taught))
    world, state = taught.agent.world, torch.randn(4, taught.agent.world.width)
    with torch.no_grad():
        assert torch.equal(world.features(state), state[:, :6])
        other = torch.cat([state[:, :6], torch.randn(4, world.width - 6)], -1)
        assert not torch.equal(world.outcome(state)[0], world.outcome(other)[0]), "heads see what M remembers"


# -- runs -------------------------------------------------------------------------------------------------------------


def evolving(env: str = "worldmodel/Corridor-v0", kind: str = "vae-mdn-rnn", **changes: Any) -> Config:
    """A tiny run; a round every second update."""
    base = tiny(env)
    settings: dict[str, Any] = {
        "world": dataclasses.replace(base.world, kind=kind), "world_models": SMALL,
        "policy": dataclasses.replace(base.policy, kind="evolution"),
        "evolution": EvolutionConfig(population=6, starts=3, horizon=6, every=2),
    }  # fmt: skip
    return dataclasses.replace(base, **settings | changes)


@pytest.mark.usefixtures("quick", "every_update")
@pytest.mark.parametrize("kind", ["rssm", "vae-mdn-rnn"])
@pytest.mark.parametrize("env", ["worldmodel/Corridor-v0", "test/CorridorVector-v0", "test/CorridorBoth-v0"])
def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not(tmp_path: Path, env: str, kind: str) -> None:
    config = evolving(env, kind, updates=14)
    whole = train(config, tmp_path / "whole")
    train(dataclasses.replace(config, updates=8), tmp_path / "parts")
    parts = train(config, tmp_path / "parts")
    assert parts == whole
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == lines
    assert lines[-1]["evolution/generation"] == 5 and {"loss/reward", "evolution/spread"} <= set(lines[-1])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("policy", ["evolution", "actor-critic"])
def test_the_frozen_regime_never_collects(tmp_path: Path, policy: str) -> None:
    config = evolving(train_every=0.0, updates=9)
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, kind=policy))
    with opened(config, tmp_path) as run:
        monitored, real = [], run.collector.step
        run.collector.step = lambda random, sample=True: monitored.append(random) or real(random, sample)
        run.train()
        assert all(monitored) and run.replay.total == run.prefilled >= config.prefill and run.dreamer.updates == 9
        before = run.replay.total
    with opened(dataclasses.replace(config, updates=15), tmp_path) as run:
        run.train()
        assert run.replay.total == before and run.dreamer.updates == 15 and run.done() == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("train_every", [0.0, 2.0])
def test_a_frozen_run_is_judged_but_not_by_what_chance_was_paid(tmp_path: Path, train_every: float) -> None:
    """The rewards in the replay are those of random driving: no policy promised them."""
    train(evolving(train_every=train_every, updates=40, eval_minutes=60.0), tmp_path)
    kinds = {line["kind"] for line in metrics(tmp_path)}
    assert "eval" in kinds and ("gap" in kinds) == bool(train_every)


@pytest.mark.usefixtures("quick")
def test_the_refresh_regime_collects_with_the_controller_of_now(tmp_path: Path) -> None:
    with opened(evolving("test/CorridorBoth-v0", updates=9), tmp_path) as run:
        run.train()
        assert run.replay.total > run.prefilled
        rows = run.replay.rows(run.prefilled, run.replay.total, ["action"])["action"]
        assert run.actor.policy is run.dreamer.agent.policy and len(set(rows.flatten().tolist())) > 3, "with noise"


@pytest.mark.usefixtures("quick")
def test_a_corridor_is_solved_by_evolution_in_dreams(tmp_path: Path) -> None:
    """Left and right are swapped halfway: whoever does always the same never arrives. Greedy, in every episode."""
    config = dataclasses.replace(
        evolving("test/Turning-v0", "vae-mdn-rnn", prefill=300, pretrain=150),
        world_models=WorldModelsConfig(latent=8, depth=8, tokens=32, memory=32, mixtures=3, units=32, bins=41),
        policy=PolicyConfig(kind="evolution"),
        evolution=EvolutionConfig(population=16, starts=16, horizon=12, sigma=0.5, every=4),
    )
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, world_lr=2e-3, warmup=20, average=0.0),
        replay=dataclasses.replace(config.replay, batch=16, gigabytes=0.1),
    )
    for updates in range(300, 901, 100):
        with opened(dataclasses.replace(config, updates=updates), tmp_path) as run:
            run.train()
            best = run.env.unwrapped.optimal_return
            agent = run.dreamer.averaged_agent()
            reached = evaluate(agent, range(TRACKS["report"], TRACKS["report"] + 5)).summary()["min"]
        if reached >= 0.95 * best:
            break
    assert reached >= 0.95 * best, f"{reached:.2f} of {best:.2f}"


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run."""
    out = tmp_path_factory.mktemp("runs") / "evolved"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldmodel.train.loop.measure", lambda *_: Pace(0.01, 0.001))
        config = evolving("test/CorridorBoth-v0", updates=6, eval_minutes=60.0)
        with opened(config, out, Told()) as running:
            running.train()
            content(running)
    return out


def test_the_card_says_what_the_controller_learned_from(run: Path) -> None:
    agent = load(run)
    assert "CMA-ES" in agent.card["learning"] and "no critic" in agent.card["learning"]
    assert agent.config.policy.kind == "evolution" and agent.starts is not None


@pytest.mark.parametrize(
    "argv",
    [
        ["eval", "--episodes", "2", "--workers", "1"],
        ["gap", "--quick", "--episodes", "4", "--starts", "4", "--workers", "1"],
        ["gap", "--quick", "--episodes", "4", "--starts", "4", "--workers", "1", "--sample"],
        ["dream", "--start", "3", "--context", "2", "--horizon", "4"],
    ],
    ids=lambda argv: f"{argv[0]}{' sample' * ('--sample' in argv)}",
)
def test_every_command_works_on_it(
    run: Path, argv: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("result.json" if argv[0] == "eval" else "out")
    assert main([argv[0], str(run), *argv[1:], "--json", "--out", str(out)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result
    if argv[0] == "gap":
        assert json.loads((out / "gap.json").read_text())["values"] is None, "no critic to judge"


def test_its_dreams_are_an_environment(run: Path) -> None:
    import gymnasium

    env = gymnasium.make("worldmodel/Dream-v0", checkpoint=str(run), horizon=5)
    env.reset(seed=1)
    obs, reward, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs) and float(reward) == reward
    env.close()
