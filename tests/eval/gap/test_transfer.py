"""The gap and its three parts, against worlds that lie in one way each."""

from __future__ import annotations

import gap_fakes
import numpy as np
import pytest
import tiny
import torch
from gap_fakes import Critic, Deaf, Doubtful, Exact, Generous, Headless, Noisy, Stingy

from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.eval.gap import values
from worldmodel.eval.gap.episodes import episodes
from worldmodel.eval.gap.forks import Start, choose_starts
from worldmodel.eval.gap.transfer import transfer

H = 10


def measured(world, lived, env, horizon=H, count=24, policy=None):
    starts = choose_starts(lived, count, horizon)
    return transfer(gap_fakes.agent(world, policy), starts, horizon, env)


@pytest.mark.parametrize("world", [Exact, Headless])
def test_an_exact_dream_has_no_gap_in_any_part(world, lived, env):
    result = measured(world(), lived, env)
    for part in (result.gap, result.dynamics, result.reward_head, result.feedback):
        assert (part == 0).all()
    assert result.ended.any() and not result.ended.all(), "ends of episodes belong to the test"
    assert (result.random_dream == result.random).all() and not (result.random == result.real).any()
    assert (result.redreamed_rewards == result.lived_rewards).all()
    expected = [s.lived.rewards[s.t + 1 : s.t + 1 + H].sum() for s in result.starts]
    assert result.real.tolist() == expected


@pytest.mark.parametrize(("world", "bonus"), [(Generous, 0.25), (Stingy, -0.25)])
def test_a_lying_reward_head_is_the_reward_heads_fault(world, bonus, lived, env):
    result = measured(world(), lived, env)
    steps = np.minimum(H, [s.lived.length - s.t for s in result.starts])
    assert (result.dynamics == 0).all() and (result.feedback == 0).all()
    assert result.reward_head.tolist() == (bonus * steps).tolist()


def test_a_deaf_dream_is_the_dynamics_fault_and_costs_feedback(lived, env):
    result = measured(Deaf(), lived, env)
    assert (result.reward_head == 0).all()
    assert np.abs(result.dynamics).mean() > 1
    assert (result.feedback <= 0).all() and result.feedback.mean() < -1, "the plan was made for a car that stands still"
    for b, start in enumerate(result.starts):  # by hand: it dreams of standing where it was
        t, place, seed = (int(x) for x in start.state)
        steps = range(t + 1, min(t + H, start.lived.length) + 1)
        assert result.dream[b] == sum(gap_fakes.reward_of(k, place, seed) for k in steps)
        moved, paid = place, 0.0
        for k in steps:
            aim = np.clip((gap_fakes.target(k, seed) - place) / 8, -1, 1)
            moved = gap_fakes.move(moved, np.float32(aim))
            paid += gap_fakes.reward_of(k, moved, seed)
        assert result.replay[b] == paid


def test_rewards_are_weighted_by_the_chance_of_getting_there(lived, env):
    result = measured(Doubtful(), lived, env)
    for b, start in enumerate(result.starts):
        paid = start.lived.rewards[start.t + 1 : start.t + 1 + H]
        weighted = (paid * 0.5 ** np.arange(len(paid))).sum()  # the first step is taken for sure
        assert result.dream[b] == pytest.approx(weighted, abs=1e-9)
        assert result.posterior[b] == pytest.approx(weighted, abs=1e-9)
        assert result.replay[b] == paid.sum()


def test_what_is_dreamed_beyond_a_real_end_is_the_dynamics_fault(lived, env):
    class Endless(Exact):
        def outcome(self, state):
            return torch.ones(state.shape[:-1]), torch.ones(state.shape[:-1])

    episode = next(e for e in lived if gap_fakes.terminates(e.seed))
    result = transfer(gap_fakes.agent(Endless()), [Start(episode, episode.length - 4)], H, env)
    assert result.dream.tolist() == [10.0] and result.posterior.tolist() == [4.0] and result.ended.all()
    assert result.dynamics.tolist() == [6.0]
    assert result.redreamed_rewards.sum() == 4, "and what it pays for real actions is not counted beyond it"


def test_the_three_parts_sum_to_the_gap_for_every_start():
    config = tiny.config(env=EnvConfig(id="gap_fakes:Lane-v0", action_repeat=1, image_size=16))
    real = make(config.env)
    agent = build(config, Spaces.of(real), torch.float32)
    tiny.shake(agent.world)
    tiny.shake(agent.policy)
    starts = choose_starts(episodes(agent, range(6), sample=True), 12, H)
    result = transfer(agent, starts, H, real, sample=True)
    parts = np.stack([result.dynamics, result.reward_head, result.feedback])
    assert (np.abs(parts).max(1) > 1e-3).all(), "each part is there"
    assert np.abs(parts.sum(0) - (result.dream - result.real)).max() < 1e-6
    assert result.dream == pytest.approx(result.dreamed_rewards.sum(0))
    assert result.value is not None and np.isfinite(result.value_dream).all()
    again = transfer(agent, starts[3:7], H, real, sample=True)
    assert again.dream == pytest.approx(result.dream[3:7], abs=1e-4), "noise belongs to the start, not to its batch"
    real.close()


def test_the_posterior_return_is_filtered_step_by_step(noiseless):
    """J_post of an RSSM, against a loop that is written down as plainly as possible."""
    config = tiny.config(env=EnvConfig(id="gap_fakes:Lane-v0", action_repeat=1, image_size=16))
    real = make(config.env)
    agent = build(config, Spaces.of(real), torch.float32)
    tiny.shake(agent.world)
    tiny.shake(agent.policy)
    starts = choose_starts(episodes(agent, range(4)), 4, 5)
    result = transfer(agent, starts, 5, real)
    for b, start in enumerate(starts):
        state, alive, dreamed, posterior = torch.from_numpy(start.state)[None], 1.0, [], 0.0
        real.reset(seed=start.seed)
        for action in start.lived.recording.actions[: start.t]:
            real.step(action)
        imagined = state
        for _ in range(5):
            with torch.no_grad():
                dreamed.append(agent.policy.act(agent.world.features(imagined), sample=False).clamp(-1, 1))
                imagined = agent.world.imagine(imagined, dreamed[-1]).state
        for action in dreamed:
            obs, _, terminated, truncated, _ = real.step(action[0].numpy())
            seen = {name: torch.from_numpy(value)[None] for name, value in obs.items()}
            with torch.no_grad():
                state = agent.world.observe(state, action, seen, torch.zeros(1, dtype=torch.bool))
                reward, cont = agent.world.outcome(state)
            posterior += alive * float(reward)
            alive *= float(cont)
            if terminated or truncated:
                break
        assert result.posterior[b] == pytest.approx(posterior, abs=1e-4)
    assert len({round(p, 3) for p in result.posterior}) == 4
    real.close()


def test_the_measurement_disturbs_nothing(lived, env):
    agent = gap_fakes.agent(Noisy())
    torch.manual_seed(5)
    before, state = torch.get_rng_state(), agent.state.clone()
    first = transfer(agent, choose_starts(lived, 6, H), H, env)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(agent.state, state)
    torch.rand(7)
    assert (transfer(agent, choose_starts(lived, 6, H), H, env).dream == first.dream).all()


def test_sampled_actions_are_sampled_in_the_dream_too(env):
    agent = gap_fakes.agent()
    result = transfer(agent, choose_starts(episodes(agent, range(5), sample=True), 5, H), H, env, sample=True)
    assert (result.dynamics == 0).all() and (result.reward_head == 0).all()
    assert (result.feedback != 0).any(), "other noise, other actions"


# -- the critic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [None, 0.8])
def test_the_critic_is_held_against_what_came(lived, moved):
    """Bug: that of a run that moves its discount was held against returns at the first one, and looked optimistic."""
    agent = gap_fakes.agent(policy=Critic())
    agent.card = {"discount": moved} if moved else {}
    starts = choose_starts(lived, 24, 1)
    found = values.calibration(agent, starts)
    gamma = moved or agent.config.policy.discount
    assert gamma == found["discount"]
    for point, start in zip(found["points"], starts, strict=True):
        assert point["value"] == 2 * start.t + 1 and point["bootstrapped"] == start.lived.truncated
        end = start.lived.length - 1 if start.lived.truncated else start.lived.length
        total = sum(gamma**i * r for i, r in enumerate(start.lived.rewards[start.t + 1 : end + 1]))
        if start.lived.truncated:
            total += gamma ** (end - start.t) * (2 * end + 1)
        assert point["realised"] == pytest.approx(total)
    cut = np.mean([s.lived.truncated for s in starts])
    assert found["bootstrapped"] == pytest.approx(cut) and 0 < cut < 1 and 0 < found["bootstrap_part"] <= 1
    assert found["terminated_only"]["n"] == round(24 * (1 - cut))
    v, g = (np.array([p[k] for p in found["points"]]) for k in ("value", "realised"))
    assert [found["slope"], found["intercept"]] == pytest.approx(np.polyfit(v, g, 1).tolist())
    assert found["bias"]["mean"] == pytest.approx((v - g).mean())


def test_no_critic_no_calibration(lived):
    assert values.calibration(gap_fakes.agent(), choose_starts(lived, 4, 1)) is None
