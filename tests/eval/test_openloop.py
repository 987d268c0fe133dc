"""Alignment in time: a world model that knows the rules must dream exactly what happened, and any shift must show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from eval_fakes import BONUS, Oracle, beacon_agent, draw, length_of, reward_of, terminates

from worldmodel.errors import UsageError
from worldmodel.eval import openloop
from worldmodel.eval.fidelity import PSNR_CAP, fidelity
from worldmodel.eval.openloop import open_loop, open_loops
from worldmodel.eval.real import evaluate
from worldmodel.eval.recording import record
from worldmodel.eval.regrounded import reground
from worldmodel.models.base import Step, dream

SEED = 7  # 12 steps, then it terminates


class Noisy(Oracle):
    """Its dreams draw noise, as the RSSM's do."""

    def imagine(self, state, action):
        step = super().imagine(state, action)
        return Step(step.state, step.reward + torch.rand(len(state)), step.cont)


@pytest.fixture(scope="module")
def episode():
    return record(beacon_agent(), SEED, sample=True)  # sampled: the actions vary, so that their shift shows


def test_a_recording_is_what_happened(episode):
    assert len(episode) == length_of(SEED) + 1  # as many observations as steps, and the first
    positions = SEED % 5 + np.concatenate([[0], np.cumsum(episode.actions.argmax(-1))[:-1]])
    ends = terminates(SEED)
    for t, position in enumerate(positions):
        assert (episode.image[t] == draw(t, position, length_of(SEED), ends)).all()
        expected = reward_of(t, position, length_of(SEED), ends) if t else 0
        assert episode.rewards[t] == expected
    assert episode.is_first.tolist() == [True] + [False] * 12
    assert episode.is_terminal.tolist() == [False] * 12 + [True]
    assert (episode.actions[:-1].sum(-1) == 1).all() and (episode.actions[-1] == 0).all()
    assert episode.discrete and episode.seed == SEED and episode.step_seconds == pytest.approx(0.1)
    assert len({tuple(a) for a in episode.actions[:-1]}) > 1


@pytest.mark.parametrize("sample", [False, True])
def test_a_recording_is_the_episode_that_evaluate_measures(sample):
    agent = beacon_agent()
    returns = evaluate(agent, range(20, 26), sample=sample).returns
    recorded = [record(agent, seed, sample=sample).rewards.sum() for seed in range(20, 26)]
    assert np.allclose(returns, recorded)


def test_a_truncated_episode_is_not_terminal():
    assert not record(beacon_agent(), 9).is_terminal.any()


def test_recording_stops_when_told_and_leaves_no_trace():
    agent = beacon_agent()
    agent.start(2)
    before, state = torch.get_rng_state(), agent.state
    seen = []
    episode = record(agent, SEED, steps=3, watch=lambda env: seen.append(env.unwrapped.t))
    assert len(episode) == 4 and seen == [0, 1, 2, 3]
    assert (episode.actions[-1] == 0).all()
    assert torch.equal(torch.get_rng_state(), before) and agent.state is state


WINDOWS = [(0, 1, 12), (0, 3, 10), (2, 3, 5), (5, 1, 1), (1, 9, 3), (4, 4, 5)]


@pytest.mark.parametrize(("start", "context", "horizon"), WINDOWS)
def test_a_perfect_world_dreams_the_truth(episode, start, context, horizon):
    window = open_loop(beacon_agent(), episode, start, context, horizon)
    stop = start + context + horizon
    assert (window.truth == episode.image[start:stop]).all()
    assert np.allclose(window.dream, window.truth / 255, atol=1e-6)
    assert np.allclose(window.reconstruction, window.truth / 255, atol=1e-6)
    assert (window.reward_paid == episode.rewards[start:stop]).all()
    for predicted in (window.reward_posterior, window.reward_dream):
        assert np.isnan(predicted[0]) and (predicted[1:] == window.reward_paid[1:]).all()
    for predicted in (window.cont_posterior, window.cont_dream):
        assert np.isnan(predicted[0]) and (predicted[1:] == ~episode.is_terminal[start + 1 : stop]).all()
    quality = fidelity(window)
    assert np.allclose(quality.dream_psnr, PSNR_CAP) and np.allclose(quality.reconstruction_psnr, PSNR_CAP)
    assert (quality.persistence_psnr < PSNR_CAP).all()
    for error in (quality.reward_error, quality.cumulative_reward_error, quality.cont_error):
        assert (error == 0).all()
    assert window.horizon == horizon and window.start == start
    assert [window.imagined(i) for i in range(context + horizon)] == [0] * context + list(range(1, horizon + 1))


def shifted(offset):
    def wrong(world, start, act, horizon):
        return dream(world, start, torch.roll(act, offset, 0), horizon)

    return wrong


@pytest.mark.parametrize("offset", [-1, 1])
def test_actions_off_by_one_are_found(episode, monkeypatch, offset):
    monkeypatch.setattr(openloop, "dream", shifted(offset))
    quality = fidelity(open_loop(beacon_agent(), episode, 0, 3, 10))
    assert quality.dream_psnr.min() < PSNR_CAP - 1
    assert np.abs(quality.reward_error).max() > 0


@pytest.mark.parametrize("shift", [-1, 1])
def test_rewards_and_continuations_off_by_one_are_found(episode, shift):
    quality = fidelity(open_loop(beacon_agent(Oracle(shift)), episode, 0, 3, 10))
    assert np.abs(quality.reward_error).min() > 0
    assert np.abs(quality.reward_error).max() == pytest.approx(BONUS, rel=0.1)  # the bonus came at the wrong time
    assert np.abs(quality.cont_error).max() == 1


def test_the_dream_does_not_see_what_it_is_compared_with(episode):
    """Other pictures after the context change truth and reconstruction, not the dream."""
    image = episode.image.copy()
    image[3:, 0, 0, 1] += 3  # another position
    honest, fooled = (open_loop(beacon_agent(), e, 0, 3, 10) for e in (episode, replace(episode, obs={"image": image})))
    assert (honest.dream == fooled.dream).all()
    assert (honest.reward_dream == fooled.reward_dream)[1:].all()
    assert not np.allclose(honest.reconstruction[3:], fooled.reconstruction[3:])


class Counting(Oracle):
    """Its reward is the number of observations since it was told to begin."""

    def observe(self, state, action, obs, is_first):
        count = torch.where(is_first, 1, state[:, 4] + 1)
        return torch.cat([super().observe(state, action, obs, is_first)[:, :4], count[:, None]], 1)

    def imagine(self, state, action):
        step = super().imagine(state, action)
        return Step(step.state, state[:, 4], step.cont)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_bug_windows_in_mid_episode_began_with_an_empty_memory(episode, start):
    """The agent has driven up to the window: it remembers the frames before it, and every frame of the context."""
    window = open_loop(beacon_agent(Counting()), episode, start, 3, 5)
    assert (window.reward_posterior[1:] - start).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (window.reward_dream[1:] - start).tolist() == [1, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("sample", [False, True])
def test_driving_begins_once(sample):
    """In `evaluate` and `record` alike, the memory begins with an episode, not with a step."""

    class Doubting(torch.nn.Module):
        def act(self, features, sample=True):  # moves only when it remembers more than three observations
            return torch.nn.functional.one_hot((features[:, 4] > 3).long(), 3).float()

    agent = beacon_agent(Counting())
    agent.policy = Doubting()
    assert record(agent, SEED, sample=sample).actions.argmax(-1).tolist() == [0] * 3 + [1] * 9 + [0]
    seeds = range(20, 45)
    expected = [
        sum(
            reward_of(t, seed % 5 + max(0, t - 3), length_of(seed), terminates(seed))
            for t in range(1, length_of(seed) + 1)
        )
        for seed in seeds
    ]
    assert evaluate(agent, seeds, sample=sample).returns.tolist() == expected


def test_a_batch_of_windows_equals_its_windows_one_by_one():
    agent = beacon_agent(Noisy())
    episodes = [record(agent, seed, sample=True) for seed in (7, 5)]
    windows = [(episodes[0], 0), (episodes[1], 2), (episodes[0], 4)]
    together = open_loops(agent, windows, 3, 5)
    for (episode, start), window in zip(windows, together, strict=True):
        alone = open_loop(agent, episode, start, 3, 5)
        assert (alone.truth == window.truth).all() and (alone.dream == window.dream).all()
        assert (alone.reward_dream[1:] == window.reward_dream[1:]).all()
        assert window.start == start
    noise = [w.reward_dream[3:] - w.reward_paid[3:] for w in together]
    assert not np.allclose(noise[0], noise[1]) and not np.allclose(noise[0], noise[2])
    other = open_loop(agent, episodes[0], 0, 3, 5, seed=1)
    assert (other.reward_dream[1:] != together[0].reward_dream[1:]).any()


def test_windows_that_do_not_fit_are_refused(episode):
    agent = beacon_agent()
    with pytest.raises(UsageError, match="the episode has 13"):
        open_loop(agent, episode, 0, 3, 11)
    for start, context, horizon in ((-1, 3, 3), (0, 0, 3), (0, 3, 0)):
        with pytest.raises(UsageError, match="start must be"):
            open_loop(agent, episode, start, context, horizon)
    is_first = episode.is_first.copy()
    is_first[6] = True
    with pytest.raises(UsageError, match="another episode at step 6"):
        open_loop(agent, replace(episode, is_first=is_first), 2, 3, 5)
    with pytest.raises(UsageError, match="no windows"):
        open_loops(agent, [])


def test_a_world_without_pictures_is_refused(episode):
    with pytest.raises(UsageError, match="cannot draw its dreams"):
        open_loop(beacon_agent(Oracle(images=False)), episode, 0, 3, 5)
    blind = replace(episode, obs={"vector": np.zeros((13, 4), np.float32)})
    with pytest.raises(UsageError, match="no image"):
        _ = blind.image


@pytest.mark.parametrize("every", [1, 2, 5, 12, 13, 40])
def test_regrounding_a_perfect_world_gives_the_truth(episode, every):
    film = reground(beacon_agent(), episode, every)
    assert np.allclose(film.dream, episode.image / 255, atol=1e-6)
    assert (film.reward_dream == episode.rewards).all()
    assert film.imagined.tolist() == [t % every for t in range(13)]


def test_regrounding_refuses_nonsense(episode):
    with pytest.raises(UsageError, match="every"):
        reground(beacon_agent(), episode, 0)
    with pytest.raises(UsageError, match="two steps"):
        reground(beacon_agent(), episode[:1], 5)


def test_regrounding_looks_only_when_it_may(episode):
    """Pictures between two looks are not seen by the dream of the first stretch."""
    image = episode.image.copy()
    image[1:5, 0, 0, 1] += 3
    honest, fooled = (reground(beacon_agent(), e, 5) for e in (episode, replace(episode, obs={"image": image})))
    assert (honest.dream == fooled.dream).all()
