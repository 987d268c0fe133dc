"""A committee against its members, one by one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import ACTIONS, POLICY, action, config, expect_equal, shake
from torch import Tensor

from worldmodel.agent import build
from worldmodel.envs import Spaces
from worldmodel.models.base import Dream
from worldmodel.policies.actor_critic import ActorCritic, Lesson
from worldmodel.policies.committee import Committee, actor_critic

FEATURES, MEMBERS, EACH = 6, 3, 4


@pytest.fixture(params=[False, True], ids=["continuous", "discrete"])
def committee(request: pytest.FixtureRequest) -> Committee:
    torch.manual_seed(0)
    return shake(actor_critic(FEATURES, ACTIONS, request.param, dataclasses.replace(POLICY, members=MEMBERS)))


def imagined(discrete: bool) -> tuple[Dream, Tensor]:
    width, horizon = MEMBERS * EACH, 5
    states = torch.randn(horizon + 1, width, FEATURES)
    rewards, conts = torch.randn(horizon, width), torch.rand(horizon, width)
    return Dream(states, action(discrete, horizon, width), rewards, conts), states.clone()


def share(told: Dream, features: Tensor, member: int) -> tuple[Dream, Tensor]:
    """What `member` drove: a slow, obvious cut."""
    rows = range(member * EACH, (member + 1) * EACH)
    return Dream(*(torch.stack([field[:, row] for row in rows], 1) for field in told)), features[:, list(rows)]


def test_one_member_is_a_plain_actor_critic() -> None:
    assert type(actor_critic(FEATURES, ACTIONS, False, POLICY)) is ActorCritic


def test_the_best_known_action_is_the_mean_of_all(committee: Committee) -> None:
    seen = torch.randn(7, FEATURES)
    if committee.discrete:
        probs = sum(member.distribution(seen).probs for member in committee.members) / MEMBERS
        wanted = torch.eye(ACTIONS)[probs.argmax(-1)]
    else:
        wanted = sum(member.act(seen, sample=False) for member in committee.members) / MEMBERS
    expect_equal(committee.act(seen, sample=False), wanted, 1e-6)
    value = sum(member.value(seen) for member in committee.members) / MEMBERS
    expect_equal(committee.value(seen), value, 1e-4)


def test_samples_have_the_mean_and_the_spread_of_all(committee: Committee) -> None:
    seen = torch.randn(1, FEATURES).expand(200_000, FEATURES)
    drawn = committee.act(seen)
    policies = [member.distribution(seen[:1]) for member in committee.members]
    if committee.discrete:
        expect_equal(drawn.mean(0), sum(policy.probs[0] for policy in policies) / MEMBERS, 0.01)
    else:
        expect_equal(drawn.mean(0), sum(policy.mean[0] for policy in policies) / MEMBERS, 0.02)
        expect_equal(drawn.std(0), sum(policy.std[0] for policy in policies) / MEMBERS, 0.02)


def test_in_its_lessons_every_member_drives_its_own_dreams(committee: Committee) -> None:
    seen = torch.randn(MEMBERS * EACH, FEATURES)
    torch.manual_seed(1)
    together = committee.act_apart(seen)
    torch.manual_seed(1)
    for i, member in enumerate(committee.members):
        expect_equal(together[i * EACH : (i + 1) * EACH], member.act(seen[i * EACH : (i + 1) * EACH]), 1e-6)
    if not committee.discrete:
        torch.manual_seed(1)
        means = torch.cat(
            [member.act(part, False) for member, part in zip(committee.members, seen.chunk(MEMBERS), strict=True)]
        )
        expect_equal(committee.act_apart(seen, 0.25) - means, 0.25 * (together - means), 1e-5)
        drawn = torch.randn(MEMBERS * EACH, ACTIONS)
        twice = committee.act_apart(seen, drawn=2 * drawn) - means
        expect_equal(twice, 2 * (committee.act_apart(seen, drawn=drawn) - means), 1e-5)


def test_members_learn_as_if_they_were_alone(committee: Committee) -> None:
    told, features = imagined(committee.discrete)
    alone = [shake(ActorCritic(FEATURES, ACTIONS, committee.discrete, POLICY)) for _ in range(MEMBERS)]
    for one, member in zip(alone, committee.members, strict=True):
        one.load_state_dict(member.state_dict())
    lesson = Lesson(discount=0.9, entropy_bonus=1e-2, noise=0.5, smoothness=0.1, through=False)
    loss, metrics = committee.loss(told, features, lesson)
    loss.backward()
    losses = []
    for i, one in enumerate(alone):
        own, metric = one.loss(*share(told, features, i), lesson)
        own.backward()
        losses.append((own.detach(), metric))
    expect_equal(loss.detach(), sum(own for own, _ in losses), 1e-4)
    for name, value in metrics.items():
        expect_equal(value, sum(metric[name] for _, metric in losses) / MEMBERS, 1e-4)
    for one, member in zip(alone, committee.members, strict=True):
        for (name, p), q in zip(one.named_parameters(), member.parameters(), strict=True):
            if p.requires_grad:
                expect_equal(q.grad, p.grad, 1e-5)
            assert p.requires_grad == q.requires_grad, name
        expect_equal(member.scale.high, one.scale.high, 1e-6)


def test_the_replay_value_loss_teaches_all_critics(committee: Committee) -> None:
    seen, reward = torch.randn(5, 3, FEATURES), torch.randn(5, 3)
    first, terminal = torch.zeros(5, 3, dtype=torch.bool), torch.rand(5, 3) < 0.3
    after = (torch.randn(2, 3), torch.full((3,), 2), torch.randn(3, FEATURES), torch.rand(3) < 0.5)
    told = {"discount": 0.9, "after": after}
    loss = committee.replay_loss(seen, reward, first, terminal, **told)
    wanted = [member.replay_loss(seen, reward, first, terminal, **told) for member in committee.members]
    expect_equal(loss, sum(wanted), 1e-5)


def test_slow_critics_follow(committee: Committee) -> None:
    before = [member.slow_critic[-1].bias.clone() for member in committee.members]
    committee.update_slow()
    for member, was in zip(committee.members, before, strict=True):
        expect_equal(member.slow_critic[-1].bias, torch.lerp(was, member.critic[-1].bias, POLICY.slow_rate), 1e-6)


def test_an_agent_counts_all_members_and_sets_their_precision() -> None:
    spaces = Spaces({"vector": (5,)}, False, ACTIONS)
    one, three = (build(config(policy={"members": n}), spaces, torch.float32) for n in (1, 3))
    counts = [sum(p.numel() for p in made.policy.parameters()) for made in (one, three)]
    assert counts[1] == 3 * counts[0]
    told = dict(line.split()[:2] for line in repr(three).splitlines()[1:])
    assert told["actor"] == f"{3 * sum(p.numel() for p in one.policy.actor.parameters()):,}"
    three.policy.precision = torch.bfloat16
    assert three.policy.precision == torch.bfloat16
    assert all(member.precision == torch.bfloat16 for member in three.policy.members)
