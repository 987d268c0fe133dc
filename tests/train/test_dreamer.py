"""One update: what it changes, what it must not, and what it says when a number is not finite."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from dreamer_helpers import copied, dreamer, experience, some_states
from tiny import config, expect_equal, shake, tensors
from torch import Tensor

import worldmodel.train.dreamer as module
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.explore import RandomActions
from worldmodel.errors import NumericalError
from worldmodel.models.base import After, Batch, dream
from worldmodel.optim import Average
from worldmodel.replay import Replay
from worldmodel.train.clock import Clock
from worldmodel.train.collect import Collector
from worldmodel.train.dreamer import Dreamer, learn_in_dream


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7))}


@pytest.fixture(params=["reinforce", "dynamics"])
def gradient(request: pytest.FixtureRequest) -> str:
    return request.param


# -- an update --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("discrete", [False, True])
def test_an_update_teaches_everything(gradient: str, discrete: bool, precision: str) -> None:
    made = dreamer(discrete=discrete, policy={"gradient": gradient}, precision=precision, world={"free_nats": 0.0})
    before = copied(made.tensors())
    metrics, states = made.update(experience(made, discrete=discrete))
    assert all(m.shape == () and bool(m.isfinite()) and not m.requires_grad for m in metrics.values())
    assert {"loss/reward", "loss/rec_image", "loss/dyn", "loss/actor", "loss/critic", "world/kl"} <= set(metrics)
    assert states.shape == (5, 4, made.agent.world.width) and not states.requires_grad
    after = made.tensors()
    same = set(after) - changed(before, after)
    assert same == set() and made.updates == 1
    assert all(value.dtype in (torch.float32, torch.int64) for value in after.values())


def test_slow_critic_and_average_follow_the_new_weights() -> None:
    made = dreamer()
    made.agent.policy.slow_critic.load_state_dict(made.agent.policy.critic.state_dict())
    made.average = Average({"world": made.agent.world, "policy": made.agent.policy}, 0.997)
    old = copied(made.agent.weights())
    made.update(experience(made))
    new = made.agent.weights()
    for name in old:  # the average's first decay is 1 / (1 + 10)
        if name.startswith("policy.critic."):
            slow = name.replace("critic", "slow_critic")
            expect_equal(new[slow], 0.98 * old[slow] + 0.02 * new[name], 1e-6)
        expect_equal(made.average.weights[name], old[name] / 11 + new[name] * 10 / 11, 1e-5)


def test_weight_decay_is_of_the_world_alone() -> None:
    """The world's matrices lose rate x decay of themselves before the same step; everything else moves as without."""
    falling = {"world_lr": 0.125, "warmup": 1, "decay": 0.125, "final": 0.5}
    made, plain = dreamer(optim=falling | {"world_weight_decay": 2.0}), dreamer(optim=falling)
    plain.load_tensors(copied(made.tensors()), 0)
    old, batch, random = copied(made.agent.weights()), experience(made), torch.get_rng_state()
    for learner in (made, plain):
        torch.set_rng_state(random)
        learner.update(batch, 1.0)
    for name, value in made.agent.weights().items():
        shrunk = 0.5 * 0.125 * 2.0 if name.startswith("world.") and value.dim() > 1 else 0.0
        expect_equal(value, plain.agent.weights()[name] - shrunk * old[name], 1e-5)


def test_averaged_agent_has_the_average_or_without_one_the_live_weights() -> None:
    made = dreamer(optim={"average": 0.5})
    for _ in range(2):
        made.update(experience(made))
    average = made.averaged_agent()
    assert changed(average.weights(), made.average.weights) == set() and average.version != made.agent.version
    version = average.version
    made.update(experience(made))
    assert average.version == version  # a snapshot
    assert made.averaged_agent() is average and average.version != version
    off = dreamer(optim={"average": 0.0})
    off.update(experience(off))
    assert off.averaged_agent().version == off.agent.version


def test_tensors_bring_everything_back() -> None:
    """Two more updates from a copy give the same weights, bit by bit."""
    made, other = dreamer(), dreamer(seed=1)
    first, second = experience(made), experience(made)
    made.update(first)
    other.load_tensors(copied(made.tensors()), made.updates)
    assert other.updates == other.average.updates == 1 and changed(made.tensors(), other.tensors()) == set()
    for learner in (made, other):
        torch.manual_seed(8)
        learner.update(second)
        learner.update(first)
    assert changed(made.tensors(), other.tensors()) == set() and made.agent.version == other.agent.version


def test_batches_are_left_as_they_were(gradient: str) -> None:
    made = dreamer(policy={"gradient": gradient})
    given = experience(made)
    kept = copy.deepcopy(given)
    made.update(given)
    before, after = tensors(kept), tensors(given)
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- who learns from what ---------------------------------------------------------------------------------------------


def test_the_world_never_learns_from_the_actors_loss(gradient: str) -> None:
    made = dreamer(policy={"gradient": gradient, "horizon": 4})
    states = made.agent.world.loss(experience(made))[2]
    made.optimizer.zero_grad()
    learn_in_dream(made.dreamed, made.agent.policy, states.flatten(0, 1), 0.0)
    world, policy = made.agent.world, made.agent.policy
    assert [name for name, p in world.named_parameters() if p.grad is not None] == []
    assert all(p.requires_grad for p in world.parameters())
    for net in (policy.actor, policy.critic):
        assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    assert all(p.grad is None for p in policy.slow_critic.parameters())


def test_the_worlds_gradients_are_those_of_its_own_loss(gradient: str) -> None:
    made = dreamer(policy={"gradient": gradient}, world={"free_nats": 0.0})
    given = experience(made)
    torch.manual_seed(6)
    loss = made.agent.world.loss(given)[0]
    expected = torch.autograd.grad(loss, list(made.agent.world.parameters()))
    torch.manual_seed(6)
    made.update(given)
    for p, grad in zip(made.agent.world.parameters(), expected, strict=True):
        expect_equal(p.grad, grad, 1e-6)


def test_the_dynamics_option_changes_the_actors_gradient_only() -> None:
    """Same dream, same critic target: the critic's gradient is the same, the actor's is another."""
    grads: dict[str, dict[str, Tensor]] = {}
    for gradient in ("reinforce", "dynamics"):
        made = dreamer(policy={"gradient": gradient})
        start = some_states()
        torch.manual_seed(3)
        learn_in_dream(made.dreamed, made.agent.policy, start, 0.0)
        grads[gradient] = {name: p.grad for name, p in made.agent.policy.named_parameters() if p.requires_grad}
    for name, grad in grads["reinforce"].items():
        other = grads["dynamics"][name]
        if name.startswith("critic"):
            expect_equal(grad, other, 1e-5)
        else:
            assert torch.nn.functional.cosine_similarity(grad.flatten(), other.flatten(), 0) < 0.99, name


def test_dreams_follow_the_policy_and_teach_it(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dreamer(policy={"gradient": gradient, "horizon": 7})
    seen = []
    monkeypatch.setattr(module, "dream", lambda *args: seen.append((args, dream(*args))) or seen[-1][1])
    made.update(experience(made))
    ((world, start, act, horizon), told) = seen[0]
    assert len(seen) == 1 and world is made.agent.world and horizon == 7
    looked = made.agent.world.features(start)
    torch.manual_seed(1)
    expected = made.agent.policy.act_apart(looked)
    torch.manual_seed(1)
    assert torch.equal(act(looked), expected)
    assert told.states.shape == (8, len(start), world.width)
    assert told.states.requires_grad == (gradient == "dynamics") and not start.requires_grad


@pytest.mark.parametrize("starts", [0, 3])
def test_every_member_of_a_committee_gets_as_many_dreams(starts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dreamer(policy={"members": 2, "starts": starts, "replay_value": 0.5})
    before, seen = copied(made.tensors()), []
    monkeypatch.setattr(module, "dream", lambda *args: seen.append(args[1]) or dream(*args))
    told = experience(made)
    made.update(told)
    alive = int((~told.is_terminal).sum())
    assert len(seen[0]) == 2 * (starts or alive)
    for member in (0, 1):
        assert {f"live.policy.members.{member}.{net}.0.0.weight" for net in ("actor", "critic", "slow_critic")} <= (
            changed(before, made.tensors())
        )


@pytest.mark.parametrize("temperature", [0.01, 5.0])
def test_dreams_that_teach_are_sampled_at_their_temperature(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.01 two dreams of the same actions are all but one and the same, at 5 they are not."""
    made = dreamer(policy={"temperature": temperature, "horizon": 4})
    seen = []
    monkeypatch.setattr(module, "dream", lambda *args: seen.append(args) or dream(*args))
    made.update(experience(made))
    world, start = seen[0][0], seen[0][1]
    assert world.world is made.agent.world
    plan = torch.zeros(4, len(start), made.agent.spaces.actions)
    first, second = (dream(world, start, plan, 4).states for _ in range(2))
    alike = (first[1] - second[1]).abs().sum(-1) < 1e-3
    assert alike.float().mean() > 0.9 if temperature < 1 else alike.float().mean() < 0.5


@pytest.mark.parametrize("after", [False, True])
def test_the_replay_value_loss_changes_the_critics_gradient_only(after: bool) -> None:
    grads = []
    for weight in (0.0, 0.3):
        made = dreamer(policy={"replay_value": weight})
        torch.manual_seed(5)
        told = experience(made)
        if after:
            width = told.reward.shape[1]
            state = torch.zeros(width, made.agent.world.width)
            came = After(torch.ones(2, width), torch.full((width,), 2), state, torch.zeros(width, dtype=torch.bool))
            told = dataclasses.replace(told, after=came)
        metrics, _ = made.update(told)
        assert ("loss/replay_value" in metrics) == bool(weight)
        grads.append({name: p.grad for m in (made.agent.world, made.agent.policy) for name, p in m.named_parameters()})
    for name, grad in grads[0].items():
        same = grad is None or torch.equal(grad, grads[1][name])
        assert same == (not name.startswith("critic.")), name


# -- where dreams begin -----------------------------------------------------------------------------------------------


def numbered(terminal: list[list[bool]]) -> tuple[Tensor, Tensor]:
    """States (T, B, S) that hold their own number, and the flags."""
    flags = torch.tensor(terminal)
    return torch.arange(flags.numel()).reshape(*flags.shape, 1).float(), flags


def test_terminal_states_never_start_dreams() -> None:
    states, terminal = numbered([[False, True, False], [False, False, True]])
    assert dreamer()._starts(states, terminal, 0.0).flatten().tolist() == [0, 2, 3, 4]  # starts = 0: all others
    some = dreamer(policy={"starts": 3})
    drawn = [some._starts(states, terminal, 0.0).flatten().tolist() for _ in range(50)]
    assert {len(set(row)) for row in drawn} == {3} and {n for row in drawn for n in row} == {0, 2, 3, 4}
    assert len(dreamer(policy={"starts": 100})._starts(states, terminal, 0.0)) == 4


def test_terminal_states_never_start_the_dreams_of_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dreamer()
    given = experience(made)
    assert 0 < int(given.is_terminal.sum()) < given.is_terminal.numel()
    starts: list[Tensor] = []
    monkeypatch.setattr(module, "dream", lambda world, start, *rest: starts.append(start) or dream(world, start, *rest))
    _, states = made.update(given)
    assert torch.equal(starts[0], states[~given.is_terminal])


# -- not finite -------------------------------------------------------------------------------------------------------


NAN = float("nan")
BROKEN = {
    "reward": r"^loss/reward not finite: .*--optim\.world-lr",
    "observation": r"loss/rec_vector.* not finite",
    "critic": r"^loss/actor, loss/critic",
    "gradient": r"^gradient of world\.core\.gates\.weight not finite at update 0, and of 0 more",
}
"""What is broken -> what the error must name."""


def broken(what: str) -> tuple[Dreamer, Batch]:
    made = dreamer()
    given = experience(made)
    if what == "reward":
        given.reward[2, 1] = NAN
    elif what == "observation":
        given.obs["vector"][0, 0, 0] = float("inf")
    elif what == "critic":
        made.agent.policy.critic[-1].bias.data[0] = NAN
    else:
        made.agent.world.core.gates.weight.register_hook(lambda grad: grad * NAN)
    return made, given


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_not_finite_is_named_and_nothing_learns_from_it(what: str) -> None:
    made, given = broken(what)
    before = copied(made.tensors())
    with pytest.raises(NumericalError, match=BROKEN[what]):
        made.update(given)
    assert {name for name in changed(before, made.tensors()) if ".scale." not in name} == set()
    assert made.updates == made.average.updates == 0
    assert all(p.requires_grad for p in made.agent.world.parameters())


@pytest.mark.parametrize("what", ["reward", "observation", "critic", "gradient"])
def test_a_failed_update_leaves_the_return_scale_alone(what: str) -> None:
    made, given = broken(what)
    with pytest.raises(NumericalError):
        made.update(given)
    assert made.agent.policy.scale.low == made.agent.policy.scale.high == 0


# -- from the environment to the world --------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("random", [False, True])
def test_what_is_collected_is_aligned(discrete: bool, random: bool) -> None:
    """Echo pays f(a) for the action just taken and shows it: reward_t and obs_t must go with the previous action."""
    settings = EnvConfig(id="worldmodel/Echo-v0", action_repeat=1)
    env = make(settings, size=3, discrete=discrete, length=6)
    spaces = Spaces.of(env)
    made = Dreamer(config(env=settings), spaces, "cpu", Clock())
    shake(made.agent.world)
    replay = Replay(spaces, made.agent.world.width, 1e-4, 5, 0, 0)
    collector = Collector(env, made.agent.fork(), replay, RandomActions.of(env, 0), 0)
    for _ in range(40):
        collector.step(random)
    given, _ = replay.sample(32)
    previous, first = given.previous_action(), given.is_first
    first[0] |= ~given.before.any(-1)  # the oldest step knows nothing before it
    paid = previous.argmax(-1) / 2 if discrete else previous[..., 0].clamp(-1, 1)
    expect_equal(given.reward[~first], paid[~first].float(), 1e-6)
    expect_equal(given.obs["vector"][~first], previous[~first].clamp(-1, 1), 1e-6)
    assert bool((given.reward[first & given.is_first] == 0).all()) and given.reward.abs().sum() > 1
    assert not given.is_terminal.any() and bool(given.is_first[1:].any())
    made.update(given)
    if not random:
        states = replay.rows(0, replay.total, ["state", "is_first", "action"])
        ended = ~states["action"].any(-1) if not discrete else states["action"].sum(-1) == 0
        assert (np.abs(states["state"]).sum((-2, -1)) > 0).tolist() == (~ended).tolist()
