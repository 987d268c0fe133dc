"""The whole measurement on worlds whose verdict is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import gap_fakes
import numpy as np
import pytest
import torch
from gap_fakes import Critic, Deaf, Driver, Exact, Generous, Hacked, Leftist, Noisy, Stingy

from worldmodel.errors import UsageError
from worldmodel.eval.gap.episodes import episodes
from worldmodel.eval.gap.forks import choose_starts
from worldmodel.eval.gap.measure import Scale, folder_for, measure
from worldmodel.eval.gap.policies import predictivity
from worldmodel.eval.gap.transfer import transfer

SMALL = Scale("small", episodes=12, starts=24, horizon=10, open_loop=10, windows=12, every=())


class Elsewhere(Exact):
    """Honest, but it cannot know which way the target will swing: it dreams of another seed's."""

    def advance(self, state, action):
        following = super().advance(state, action)
        following[:, 2] = torch.where(state[:, 2] < 120, state[:, 2] + 21, state[:, 2])  # its episode ends alike
        return following


class Slight(Generous):
    bonus = 0.1


def verdict_of(world, policy=None, **scale):
    found = measure(gap_fakes.agent(world, policy), replace(SMALL, **scale), seeds=range(100, 112))
    return found, found["verdict"]["name"]


def test_a_perfect_model_is_faithful():
    found, name = verdict_of(Exact())
    assert name == "FAITHFUL"
    assert [found["gap"][k] for k in ("mean", "low", "high")] == [0, 0, 0]
    assert found["phantom"]["rate"] == found["phantom"]["mirror"] == found["phantom"]["excess"] == 0
    assert found["phantom"]["impossible"]["count"] == 0 and found["transfer"]["split_error"] == 0
    assert not found["phantom"]["order_reversal"]


def test_a_hacked_model_is_exploited():
    found, name = verdict_of(Hacked(), Leftist())
    assert name == "EXPLOITED" and found["gap"]["low"] > 0.05
    assert found["phantom"]["excess"] > 0.2 and found["phantom"]["part"]["low"] > 0.05
    assert verdict_of(Exact(), Leftist())[1] == "FAITHFUL", "driving badly is no gap"


@pytest.mark.parametrize(("world", "name"), [(Slight, "OPTIMISTIC"), (Stingy, "PESSIMISTIC")])
def test_a_model_that_is_off_by_little_is_called_so(world, name):
    assert verdict_of(world())[1] == name


def test_a_future_that_nobody_could_foresee_is_not_called_exploited():
    found, name = verdict_of(Elsewhere())
    assert name != "EXPLOITED" and found["phantom"]["rate"] > 0.2, "replayed, its plans fail"
    assert abs(found["phantom"]["excess"]) < 0.2, "and so do real plans in the dream"
    assert abs(found["gap"]["mean"]) < 0.2

    class Hopeful(Elsewhere, Slight):
        """And a little too generous besides."""

    found, name = verdict_of(Hopeful())
    assert name == "OPTIMISTIC", "its phantom part is large, and its rate; the excess is not"
    assert found["phantom"]["part"]["low"] > 0.05 and found["phantom"]["rate"] > 0.2 > found["phantom"]["excess"]


def test_a_frozen_model_has_no_action_fidelity():
    rows = verdict_of(Deaf())[0]["horizons"]["horizons"].values()
    assert [row["action_fidelity"] for row in rows] == [0] * len(rows)
    rows = verdict_of(Exact())[0]["horizons"]["horizons"].values()
    assert min(row["action_fidelity"] for row in rows) > 1


def test_a_noisy_model_orders_policies_worse(env):
    skills = np.linspace(0.6, 0.9, 9)
    drivers = [gap_fakes.agent(policy=Driver(skill)) for skill in skills]
    starts = [choose_starts(episodes(driver, range(6)), 6, 10) for driver in drivers]

    def ranked(world):
        results = [transfer(gap_fakes.agent(world, d.policy), s, 10, env) for d, s in zip(drivers, starts, strict=True)]
        return predictivity([str(s) for s in skills], [r.dream for r in results], [r.real for r in results])

    exact, noisy = ranked(Exact()), ranked(Noisy(40.0))
    assert exact["metrics"]["pearson"]["value"] == pytest.approx(1) and exact["metrics"]["mmrv"]["value"] == 0
    for name in ("pearson", "spearman", "kendall", "pairwise_accuracy"):
        assert noisy["metrics"][name]["value"] < exact["metrics"][name]["value"] - 0.02
    assert exact["conclusive"] and not predictivity(["a", "b"], [[1.0, 2], [3, 4]], [[1.0, 2], [3, 4]])["conclusive"]


def test_too_few_episodes_are_inconclusive():
    found = measure(gap_fakes.agent(), SMALL, seeds=range(5))
    assert found["verdict"]["name"] == "INCONCLUSIVE" and found["verdict"]["needed"] >= 8
    assert "5 episodes are too few" in found["verdict"]["reason"]


def test_the_json_is_complete_finite_and_the_same_twice(tmp_path):
    agent = gap_fakes.agent(Noisy(), Critic())
    first = measure(agent, replace(SMALL, every=(1, 3)), seeds=range(9), cache=tmp_path, command=["worldmodel", "gap"])
    again = measure(agent, replace(SMALL, every=(1, 3)), seeds=range(9), cache=tmp_path, command=["worldmodel", "gap"])
    for found in (first, again):
        assert found["provenance"].pop("wall_seconds") >= 0
    assert json.dumps(first, allow_nan=False, sort_keys=True) == json.dumps(again, allow_nan=False, sort_keys=True)
    assert first["schema_version"] == 1 and len(first["transfer"]["points"]) == 24
    assert first["provenance"]["agent_version"] == agent.version and first["provenance"]["seeds"] == list(range(9))
    assert first["real"]["n"] == 9 and first["values"]["dream"]["bias"]["n"] == 24
    assert first["temperature"] is None, "this world's noise cannot be scaled"
    assert first["disagreement"]["horizons"]["5"]["windows"] > 0 and first["dialect"]["horizons"]["5"]["windows"] > 0
    for point in first["transfer"]["points"]:
        parts = point["dynamics"] + point["reward_head"] + point["feedback"]
        assert math.isclose(parts, point["gap"], abs_tol=1e-6)


def test_a_blindfold_costs_what_the_dream_is_wrong_about():
    looks = {"every": (1, 2, 5), "episodes": 9}
    exact, noisy = (verdict_of(world, **looks)[0]["blindfold"] for world in (Exact(), Noisy(30.0)))
    assert [row["every"] for row in exact["rows"]] == [1, 2, 5]
    assert [row["share"] for row in exact["rows"]] == [1, 1, 1] and exact["half"] is None
    assert exact["rows"][0]["return"]["mean"] > 0
    shares = [row["share"] for row in noisy["rows"]]
    assert shares[0] == 1 > shares[1] > shares[2]


def test_a_horizon_is_shortened_to_what_the_episodes_allow():
    found = measure(gap_fakes.agent(), replace(SMALL, horizon=60), seeds=[1, 2, 4])  # truncated after 31 to 34 steps
    assert found["transfer"]["horizon"] == 30
    found = measure(gap_fakes.agent(), replace(SMALL, horizon=60), seeds=[1, 2, 4, 3])  # one of four must not decide
    assert found["transfer"]["horizon"] == 30
    found = measure(gap_fakes.agent(), replace(SMALL, horizon=60), seeds=[3, 6])  # terminated: any horizon will do
    assert found["transfer"]["horizon"] == 60


def test_an_environment_with_a_hidden_clock_is_refused(monkeypatch):
    monkeypatch.setattr(gap_fakes.Lane, "forgetful", True)
    with pytest.raises(UsageError, match="does not repeat itself"):
        measure(gap_fakes.agent(), SMALL, seeds=range(3))


def test_a_released_agent_is_left_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    assert folder_for(tmp_path / "run") == tmp_path / "run" / "gap"
    (tmp_path / "run" / "MANIFEST.json").write_text("{}")
    assert str(folder_for(tmp_path / "run")) == "gap"
