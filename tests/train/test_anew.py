"""A world learned anew from what a run remembers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import agent

from worldmodel.agent import Agent
from worldmodel.envs import Spaces
from worldmodel.errors import NumericalError, UsageError
from worldmodel.replay import Replay
from worldmodel.train.anew import learn_world

PERIOD = 4


def remembered(made: Agent, steps: int = 60) -> Replay:
    """Episodes of four steps, of which the third one pays."""
    replay = Replay(made.spaces, made.world.width, 0.01, made.config.replay.length, 1, 0)
    rng = np.random.default_rng(0)
    for i in range(steps):
        place = i % PERIOD
        seen = {"vector": np.eye(5, dtype=np.float32)[place]}
        action = rng.choice([-1.0, 1.0], made.spaces.actions).astype(np.float32)
        replay.add(seen, np.full(made.world.width, 0.5), action=action, reward=float(place == 2),
                   is_first=place == 0, is_terminal=place == PERIOD - 1)  # fmt: skip
    return replay


@pytest.fixture
def made() -> Agent:
    return agent("vector", optim={"world_lr": 3e-3, "warmup": 10, "average": 0.9}, replay={"batch": 16})


def reward_error(world: torch.nn.Module, replay: Replay) -> float:
    batch, _ = replay.afresh(0).gather(np.arange(0, 48, PERIOD))
    with torch.no_grad():
        states = world.loss(batch)[2]
        return float((world.outcome(states)[0] - batch.reward).abs().mean())


def test_it_learns_what_was_lived(made: Agent) -> None:
    replay = remembered(made)
    told: list[tuple[int, dict]] = []
    learned = learn_world(made, replay, 250, 1, lambda *news: told.append(news))
    assert reward_error(learned, replay) < 0.1 < 0.2 < reward_error(learn_world(made, replay, 0, 1), replay)
    assert [update for update, _ in told] == list(range(1, 251)) and "loss/reward" in told[0][1]


def test_it_carries_nothing_of_the_old_world_and_leaves_the_run_alone(made: Agent) -> None:
    replay = remembered(made)
    before, states, draws = made.version, replay.states().copy(), replay.rng.bit_generator.state
    torch.manual_seed(3)
    expected_noise = torch.rand(4)
    torch.manual_seed(3)
    one = learn_world(made, replay, 3, 1)
    assert torch.equal(torch.rand(4), expected_noise), "no global generator is moved"
    assert made.version == before and np.array_equal(replay.states(), states)
    assert replay.rng.bit_generator.state == draws and replay.next_online == 0
    made.load_weights({name: value + 1 for name, value in made.weights().items()})
    again, other = learn_world(made, replay, 3, 1), learn_world(made, replay, 3, 2)
    pairs = [(value, again.state_dict()[name], other.state_dict()[name]) for name, value in one.state_dict().items()]
    assert all(torch.equal(a, b) for a, b, _ in pairs) and any(not torch.equal(a, c) for a, _, c in pairs)


def test_averaged_weights_are_what_is_left(made: Agent) -> None:
    replay = remembered(made)
    plain = agent("vector", optim={"world_lr": 3e-3, "warmup": 10, "average": 0.0}, replay={"batch": 16})
    averaged, last = learn_world(made, replay, 5, 1), learn_world(plain, replay, 5, 1)
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), last.parameters(), strict=True))


def test_what_cannot_be_learned_from_is_named(made: Agent) -> None:
    with pytest.raises(UsageError, match="replay holds 3 steps"):
        learn_world(made, remembered(made, 3), 1)
    replay = remembered(made)
    replay.data["reward"][5:] = np.nan
    with pytest.raises(NumericalError, match="loss/reward"):
        learn_world(made, replay, 1)


def test_a_memory_afresh_shares_the_steps_and_forgets_the_states() -> None:
    replay = Replay(Spaces({"vector": (5,)}, False, 3), 2, 1e-4, 4, 2, 0)
    for i in range(9):
        replay.add({"vector": np.full(5, i)}, np.ones(2), action=np.zeros(3), reward=i, is_first=i == 0,
                   is_terminal=False)  # fmt: skip
    again = replay.afresh(7)
    assert again.data["reward"] is replay.data["reward"] and not again.states().any() and replay.states().all()
    again.write_back(np.array([[3]]), torch.full((1, 1, 2), 5.0))
    assert replay.states().max() == 1 and again.states().max() == 5
    again.sample(4)
    assert replay.next_online == 0
