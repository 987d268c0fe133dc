"""Does disagreement predict the dream's error? What is learned from, what it is held against, and the AUROC itself."""

from __future__ import annotations

import random

import gap_fakes
import gymnasium as gym
import numpy as np
import pytest
import torch
from gap_fakes import Exact, Noisy
from sklearn import metrics

from worldmodel.envs.starts import Starts
from worldmodel.errors import UsageError
from worldmodel.eval.gap import disagreement as module
from worldmodel.eval.gap import horizons
from worldmodel.eval.gap.disagreement import along_dreams, auroc, disagreement, fit_disagreement, train

STEPS = 15


class Lost(Exact):
    """From the 12th step on, and on every fourth track, its dreams leave the lane for where nobody has been."""

    def advance(self, state, action):
        following = super().advance(state, action)
        gone = (state[:, 2] % 4 == 1) & (state[:, 0] >= 12)
        following[gone, 1] = 200 * following[gone, 0]
        return following

    def decode(self, state):
        return None


def scored(world, lived, steps=STEPS):
    agent = gap_fakes.agent(world)
    return agent, horizons.measure(agent, horizons.choose_windows(lived), lived, steps)


def slow_auroc(score, label):
    """Every pair."""
    pairs = [(p, n) for p in score[label] for n in score[~label]]
    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])


@pytest.mark.parametrize("seed", range(8))
def test_auroc_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    score, label = rng.integers(0, 2 + seed, 30).astype(float), rng.random(30) < 0.3
    label[:2] = True, False
    assert auroc(score, label) == pytest.approx(slow_auroc(score, label), abs=1e-12)
    assert auroc(-score, label) == pytest.approx(1 - auroc(score, label), abs=1e-12)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(0)
    for digits in (1, 8):
        score, label = rng.normal(size=200).round(digits), rng.random(200) < 0.1
        assert auroc(score, label) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)


def test_auroc_at_its_ends():
    score = np.array([1.0, 2, 3, 4])
    assert auroc(score, score > 2) == 1 and auroc(score, score < 3) == 0 and auroc(np.ones(4), score > 2) == 0.5
    assert np.isnan(auroc(score, score > 4)) and np.isnan(auroc(score, score > 0))


def test_a_dream_that_goes_where_nobody_was_is_found_out(lived):
    agent, scores = scored(Lost(), lived)
    found = disagreement(agent, scores, lived)
    assert found["error"] == "drift" and found["heads"] == 5 and list(found["horizons"]) == ["1", "5", "15"]
    row = found["horizons"]["5"]
    assert row["auroc"] > 0.9 and row["auroc_path"] > 0.9 and row["spearman"] > 0.3 and row["useful"] is True
    low, high = row["auroc_interval"]
    assert 0.6 < low <= row["auroc"] <= high <= 1


def test_what_says_nothing_is_not_called_useful(lived, monkeypatch):
    class Upside:
        def disagreement(self, features, action):
            return -features[:, 1]

    agent, scores = scored(Lost(), lived)
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: Upside())
    row = disagreement(agent, scores, lived)["horizons"]["5"]
    assert row["auroc"] < 0.1 and row["spearman"] < 0 and row["useful"] is False


def test_every_horizon_is_judged_by_its_own_step_and_by_the_path_to_it(lived, monkeypatch):
    agent, scores = scored(Noisy(), lived)
    table = np.random.default_rng(0).random((STEPS, len(scores.windows)))
    monkeypatch.setattr(module, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "along_dreams", lambda *args: table)
    found = disagreement(agent, scores, lived)
    columns = [b for b, w in enumerate(scores.windows) if w.seed in found["judged_on"]]
    for k in (1, 5, 15):
        error = scores.frames["dream_mse"][scores.horizons.index(k), columns]
        there = [b for b, e in zip(columns, error, strict=True) if np.isfinite(e)]
        bad = error[np.isfinite(error)]
        bad, row = bad > np.quantile(bad, 0.9), found["horizons"][str(k)]
        assert row["disagreement"] == pytest.approx(table[k - 1, there].mean())
        assert row["auroc"] == pytest.approx(slow_auroc(table[k - 1, there], bad))
        assert row["auroc_path"] == pytest.approx(slow_auroc(table[:k, there].mean(0), bad))


def test_one_bad_dream_proves_nothing():
    found, error = np.arange(12.0)[None], np.arange(12.0)
    row = module._row(found, error, np.arange(12), 0)
    assert row["auroc"] == row["spearman"] == 1 and row["bad"] == 2 and row["auroc_interval"] == [1, 1]
    assert row["useful"] is True
    row = module._row(found, error, np.arange(12) // 2, 0)
    assert row["auroc"] == 1 and row["auroc_interval"] is None and row["useful"] is None, "one track holds both"
    row = module._row(np.tile([0.0, 1.0], 6)[None], error, np.arange(12), 0)
    assert row["auroc"] == 0.5 and row["useful"] is False
    mixed = np.array([[5.0, 1, 2, 3, 4, 6, 0, 7, 8, 10, 3.5, 9]])
    row = module._row(mixed, error, np.arange(12), 0)
    assert row["auroc"] == 0.65 and row["auroc_interval"][0] < 0.5 and row["useful"] is None


def test_tracks_are_learned_from_or_judged_on_but_not_both(lived, monkeypatch):
    agent, scores = scored(Noisy(), lived)
    given = []
    monkeypatch.setattr(module, "train", lambda a, episodes, **kwargs: given.extend(episodes) or train(a, episodes))
    found = disagreement(agent, scores, lived)
    seeds = {episode.seed for episode in given}
    assert set(found["learned_from"]) == seeds == {100, 103, 106, 109}
    assert set(found["judged_on"]) == {e.seed for e in lived} - seeds
    assert found["transitions"] == sum(e.length - 1 for e in given)
    judged = [b for b, w in enumerate(scores.windows) if w.seed not in seeds]
    error = scores.frames["dream_mse"][scores.horizons.index(5)][judged]
    error = error[np.isfinite(error)]
    row = found["horizons"]["5"]
    assert found["error"] == "dream_mse" and row["windows"] == len(error)
    assert row["bad"] == (error > np.quantile(error, 0.9)).sum() > 0


def test_heads_learn_what_really_followed(lived, monkeypatch):
    taken = []
    monkeypatch.setattr(module, "fit", lambda *parts, **kwargs: taken.extend(parts))
    train(gap_fakes.agent(), lived[:2])
    features, action, following = taken
    assert len(features) == lived[0].length + lived[1].length - 2
    assert torch.equal(Exact().advance(features, action), following), "not across the end of an episode either"


def test_disagreement_is_that_of_the_step_which_leads_there(lived):
    class Told:
        def disagreement(self, features, action):
            return features[:, 1] + 1000 * action[:, 0]

    agent, scores = scored(Exact(), lived)
    found = along_dreams(agent, scores, Told(), seed=0)
    assert found.shape == (STEPS, len(scores.windows))
    for b, w in enumerate(scores.windows):
        for k in (1, 2, 7):
            if w.t + k < w.lived.length:
                expected = w.lived.states[w.t + k - 1][1] + 1000 * w.lived.recording.actions[w.t + k - 1, 0]
                assert found[k - 1, b] == pytest.approx(expected, rel=1e-6)


def test_the_dreams_are_those_that_were_measured(lived, monkeypatch):
    """Noise is that of the scores, however the windows were batched: the features at k have the drift of the scores."""
    monkeypatch.setattr(horizons, "CHUNK", 7)
    agent, scores = scored(Noisy(), lived)
    begin, row = 0, scores.horizons.index(5)
    for windows, dreamed in horizons.redream(agent, scores, seed=0):
        for b, w in enumerate(windows):
            if w.t + 5 < w.lived.length:
                picture = agent.world.decode(dreamed.states[5, b : b + 1])[0].permute(1, 2, 0).numpy()
                error = np.square(picture - w.lived.recording.image[w.t + 5] / 255.0).mean()
                assert error == pytest.approx(scores.frames["dream_mse"][row, begin + b], rel=1e-4, abs=1e-9)
        begin += len(windows)
    assert begin == len(scores.windows)


def test_where_nothing_can_be_told_nothing_is_said(lived):
    agent, scores = scored(Exact(), lived)
    for row in disagreement(agent, scores, lived)["horizons"].values():
        assert row["auroc"] is None and row["useful"] is None and row["bad"] == 0 and row["spearman"] is None
    assert disagreement(agent, scores, lived[:2]) is None
    few = horizons.measure(agent, [w for w in scores.windows if w.seed == 100], lived, STEPS)
    assert disagreement(agent, few, lived) is None, "its only track was learned from"


def test_measuring_draws_from_no_global_stream(lived):
    agent, scores = scored(Noisy(), lived)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = disagreement(agent, scores, lived)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1]) and torch.equal(torch.get_rng_state(), before[2])
    torch.manual_seed(2)
    assert disagreement(agent, scores, lived) == first


# -- in dreams --------------------------------------------------------------------------------------------------------


def test_a_fitted_agent_pays_in_dreams_for_what_nobody_has_seen(lived):
    """A car in the lane is known, one far beside it is not; whoever may not look pays for both alike."""
    agent = gap_fakes.agent()
    known = np.concatenate([episode.states for episode in lived])[:40]
    unknown = known.copy()
    unknown[:, 1] += 300
    states = [torch.from_numpy(state) for state in (*known, *unknown)]
    agent.starts = Starts.of([(state, 0, i) for i, state in enumerate(states)])
    unsure = fit_disagreement(agent, lived)
    assert unsure.version == agent.version and unsure.starts is agent.starts
    assert not hasattr(agent.world, "disagreement"), "the agent itself stays as it is"
    env = gym.make("worldmodel/Dream-v0", checkpoint=unsure, obs="latent", penalty=3.0, cont="ignore")
    told = []
    for i in range(80):
        env.reset(seed=i, options={"start": i})
        _, reward, _, _, info = env.step(np.zeros(1, np.float32))
        assert reward == pytest.approx(info["raw_reward"] - 3 * info["disagreement"])
        told.append(info["disagreement"])
    assert np.median(told[40:]) > 10 * np.median(told[:40]) > 0


def test_a_fit_is_its_seed_and_needs_transitions(lived):
    agent, states = gap_fakes.agent(), torch.from_numpy(lived[0].states[:5])
    one, same, other = (fit_disagreement(agent, lived[:2], seed=s).world for s in (1, 1, 2))
    found = [world.disagreement(states, torch.zeros(5, 1)) for world in (one, same, other)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert fit_disagreement(agent, lived[:2], heads=3).world.ensemble.heads == 3
    with pytest.raises(UsageError, match="no real episode of more than one step"):
        fit_disagreement(agent, [])
