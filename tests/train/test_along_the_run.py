"""What moves along a run, update by update: learning rates, discount, entropy bonus, noise, the actor's gradient."""

from __future__ import annotations

import pytest
import torch
from dreamer_helpers import copied, dreamer, experience, some_states

import worldmodel.train.dreamer as module
from worldmodel.models.base import dream
from worldmodel.train.dreamer import learn_in_dream


@pytest.mark.parametrize(
    ("world_decay", "progress", "world", "policy"),
    [
        (0.0, 0.0, 1.0, 1.0), (0.0, 0.5, 1.0, 1.0), (0.0, 0.9375, 0.53125, 0.53125), (0.0, 1.0, 0.0625, 0.0625),
        (0.75, 0.25, 1.0, 1.0), (0.75, 0.625, 0.53125, 1.0), (0.75, 1.0, 0.0625, 0.0625),
    ],
)  # fmt: skip
def test_rates_of_world_and_policy(world_decay: float, progress: float, world: float, policy: float) -> None:
    """The first update moves every weight by its own warmed-up learning rate, the sign of its gradient."""
    falling = {"decay": 0.125, "world_decay": world_decay, "final": 0.0625}
    made = dreamer(optim={"world_lr": 2e-3, "policy_lr": 1e-3, "warmup": 4} | falling)
    old = copied(made.agent.weights())
    metrics, _ = made.update(experience(made), progress)
    assert (float(metrics["optim/world_rate"]), float(metrics["optim/policy_rate"])) == (world, policy)
    for name, value in made.agent.weights().items():
        if name.startswith("policy.scale") or "slow_critic" in name:
            continue
        rate = (2e-3 * world if name.startswith("world.") else 1e-3 * policy) / 4
        assert (value - old[name]).abs().max().item() == pytest.approx(rate, rel=0.1), name


@pytest.mark.parametrize(("progress", "horizon"), [(0.0, 10.0), (0.5, 20.0), (1.0, 40.0)])
def test_the_discount_moves_along_with_the_run(
    progress: float, horizon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dreamer(policy={"discount": 0.9, "final_discount": 0.975})
    used, real = [], made.agent.policy.loss
    monkeypatch.setattr(made.agent.policy, "loss", lambda *args: used.append(args[2].discount) or real(*args))
    metrics, _ = made.update(experience(made), progress)
    assert 1 / (1 - used[0]) == pytest.approx(horizon) == 1 / (1 - float(metrics["policy/discount"]))


@pytest.mark.parametrize(("progress", "bonus"), [(0.0, 4e-3), (0.5, 2e-3), (1.0, 1e-3)])
def test_the_entropy_bonus_moves_along_with_the_run(
    progress: float, bonus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dreamer(policy={"entropy": 4e-3, "final_entropy": 1e-3})
    used, real = [], made.agent.policy.loss
    monkeypatch.setattr(made.agent.policy, "loss", lambda *args: used.append(args[2].entropy_bonus) or real(*args))
    metrics, _ = made.update(experience(made), progress)
    assert used[0] == pytest.approx(bonus) == float(metrics["policy/entropy_bonus"])
    constant = dreamer(policy={"entropy": 4e-3})
    assert float(constant.update(experience(constant), progress)[0]["policy/entropy_bonus"]) == pytest.approx(4e-3)


@pytest.mark.parametrize(("progress", "noise"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.25)])
def test_the_noise_of_lessons_fades_along_the_run(
    progress: float, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what drives the dream, and of what its actions are then held to be likely by."""
    made = dreamer(policy={"final_noise": 0.25})
    actor, used = made.agent.policy, []
    real = actor.distribution
    monkeypatch.setattr(actor, "distribution", lambda seen, noise=1.0: used.append(noise) or real(seen, noise))
    metrics, _ = made.update(experience(made), progress)
    assert float(metrics["policy/noise"]) == pytest.approx(noise)
    assert len(used) == made.config.policy.horizon + 1 and used == pytest.approx([noise] * len(used))
    used.clear()
    actor.act(made.agent.world.features(made.agent.world.initial(1)))
    assert used == [1.0]  # reality is explored with the whole of it


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_dreams_that_teach_have_noise_as_correlated_as_is_told(
    correlation: float, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dreamer(policy={"noise_correlation": correlation, "members": members, "starts": 4000, "horizon": 5})
    seen = []
    monkeypatch.setattr(module, "dream", lambda *args: seen.append(dream(*args)) or seen[-1])
    start = some_states(4000 * members)
    learn_in_dream(made.agent.world, made.agent.policy, start, 0.5)
    (told,) = seen
    policies = getattr(made.agent.policy, "members", [made.agent.policy])
    for i, one in enumerate(policies):
        part = slice(4000 * i, 4000 * (i + 1))
        hand = one.distribution(made.agent.world.features(told.states[:-1, part]))
        z = ((told.actions[:, part] - hand.mean) / hand.std).detach()
        assert (z[1:] * z[:-1]).mean().item() == pytest.approx(correlation, abs=0.04)
        assert z.square().mean().item() == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(("progress", "counts"), [(0.0, False), (0.24, False), (0.25, True), (1.0, True)])
def test_change_costs_something_from_its_share_of_the_run_on(progress: float, counts: bool) -> None:
    """The same dream, the same gradients as where it always counts, or never."""
    grads = []
    for policy in ({"smoothness": 0.5, "smoothness_from": 0.25}, {"smoothness": 0.5 if counts else 0.0}):
        made = dreamer(policy=policy)
        start = some_states()
        torch.manual_seed(3)
        metrics = learn_in_dream(made.dreamed, made.agent.policy, start, progress)
        assert float(metrics["policy/smoothness"]) == (0.5 if counts else 0.0)
        grads.append({name: p.grad for name, p in made.agent.policy.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name


@pytest.mark.parametrize(("progress", "through"), [(0.0, False), (0.49, False), (0.5, True), (1.0, True)])
def test_dynamics_begin_to_teach_at_their_share_of_the_run(
    progress: float, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same dream: before it the gradients of the score function, after it those of the dynamics; as many
    dreams as are wanted of each, and at the rate of each."""
    late = {"gradient": "dynamics", "dynamics_from": 0.5, "starts": 7, "dynamics_starts": 3, "dynamics_rate": 0.25}
    late["smoothness"] = 0.02
    made, told, seen = dreamer(policy=late), [], []
    real = made.agent.policy.loss
    monkeypatch.setattr(made.agent.policy, "loss", lambda *args: told.append(args) or real(*args))
    monkeypatch.setattr(module, "dream", lambda *args: seen.append(args[1]) or dream(*args))
    weights = {name: value.clone() for name, value in made.agent.policy.actor.named_parameters()}
    metrics, _ = made.update(experience(made), progress)
    assert len(seen[0]) == (3 if through else 7)
    assert float(metrics["optim/policy_rate"]) == (0.25 if through else 1.0)
    moved = [(weights[name] - value).abs().max() for name, value in made.agent.policy.actor.named_parameters()]
    rate = made.config.optim.policy_lr / made.config.optim.warmup * (0.25 if through else 1)  # of the first step
    assert max(moved).item() == pytest.approx(rate, rel=0.1)
    assert told[0][0].states.requires_grad == told[0][1].requires_grad == told[0][2].through == through
    grads = []
    for policy in (late, {"gradient": "dynamics" if through else "reinforce", "smoothness": 0.02}):
        made = dreamer(policy=policy)
        start = some_states()
        torch.manual_seed(3)
        learn_in_dream(made.dreamed, made.agent.policy, start, progress)
        grads.append({name: p.grad for name, p in made.agent.policy.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]), name
