"""The verdict's gates, the intervals it stands on, and phantom rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldmodel.eval.gap.intervals import Interval, cluster_mean, clusters_needed
from worldmodel.eval.gap.phantom import car_racing_bound, event_rates, impossible, observed_bound, phantom_rate
from worldmodel.eval.gap.verdict import FEWEST, VERDICTS, judge


def between(low, high, clusters=20):
    return Interval((low + high) / 2, low, high, clusters, clusters)


@pytest.mark.parametrize(
    ("gap", "phantom", "excess", "reversal", "name"),
    [
        (between(-0.05, 0.05), between(0, 0), 0.0, False, "FAITHFUL"),
        (between(-0.04, 0.051), between(0, 0), 0.0, False, "INCONCLUSIVE"),
        (between(-0.051, 0.04), between(0, 0), 0.0, False, "INCONCLUSIVE"),
        (between(0.05, 0.5), between(0.1, 0.5), 0.9, True, "INCONCLUSIVE"),
        (between(0.051, 0.5), between(0, 0), 0.9, True, "OPTIMISTIC"),
        (between(0.051, 0.5), between(0.051, 0.5), 0.2, False, "OPTIMISTIC"),
        (between(0.051, 0.5), between(0.051, 0.5), 0.21, False, "EXPLOITED"),
        (between(0.051, 0.5), between(0.051, 0.5), 0.0, True, "EXPLOITED"),
        (between(0.051, 0.5), between(0.05, 0.5), 0.21, True, "OPTIMISTIC"),
        (between(-0.5, -0.051), between(0.1, 0.5), 0.9, True, "PESSIMISTIC"),
        (between(-0.5, -0.05), between(0, 0), 0.0, False, "INCONCLUSIVE"),
        (between(-1, 1), between(0, 0), 0.0, False, "INCONCLUSIVE"),
        (between(0, 0, clusters=FEWEST), between(0, 0), 0.0, False, "FAITHFUL"),
        (between(0, 0, clusters=FEWEST - 1), between(0, 0), 0.0, False, "INCONCLUSIVE"),
        (Interval(3.0, None, None, 1, 1), between(0, 0), 0.0, False, "INCONCLUSIVE"),
    ],
)
def test_verdicts_are_gated_on_the_interval(gap, phantom, excess, reversal, name):
    verdict = judge(gap, phantom, excess, reversal)
    assert verdict.name == name and name in VERDICTS and verdict.reason
    assert (verdict.needed is not None) <= (name == "INCONCLUSIVE")


def test_inconclusive_says_how_many_episodes_it_takes():
    gap = Interval(0.15, -0.05, 0.35, 30, 25)  # half-width 0.2, 0.1 away from the border: four times as many
    assert judge(gap, between(0, 0), 0.0).needed == 100
    assert "about 100 episodes" in judge(gap, between(0, 0), 0.0).reason
    assert clusters_needed(Interval(0.05, 0.0, 0.1, 9, 9), 0.05) is None, "on the border"
    assert judge(between(0, 0, clusters=3), between(0, 0), 0.0).needed == FEWEST


def test_a_cluster_mean_redraws_whole_episodes():
    rng = np.random.default_rng(0)
    level = rng.normal(size=30)
    values, clusters = (level.repeat(10) + 0.01 * rng.normal(size=300)), np.arange(30).repeat(10)
    by_cluster = cluster_mean(values, clusters)
    assert by_cluster.mean == pytest.approx(values.mean()) and (by_cluster.n, by_cluster.clusters) == (300, 30)
    assert by_cluster.half_width == pytest.approx(1.96 * level.std() / np.sqrt(30), rel=0.1)
    assert cluster_mean(values, np.arange(300)).half_width < by_cluster.half_width / 2.5, "as if 300 were independent"
    assert cluster_mean(values, clusters) == by_cluster != cluster_mean(values, clusters, seed=1)
    twice = by_cluster.scaled(2)
    assert (twice.mean, twice.low, twice.high) == (2 * by_cluster.mean, 2 * by_cluster.low, 2 * by_cluster.high)


def test_clusters_of_unequal_size_weigh_as_much_as_their_values():
    found = cluster_mean([1.0, 1, 1, 5], ["a", "a", "a", "b"])
    assert found.mean == 2 and found.low == 1 and found.high == 5
    many = cluster_mean([0.0] * 180 + [10.0] * 20, [*np.arange(20).repeat(9), *range(20, 40)])
    assert many.low < many.mean == 1 < many.high < 3, "not the mean of the episodes' means, which is 5"


def test_one_cluster_says_nothing_of_the_spread():
    lone = cluster_mean([1.0, 2.0], [7, 7])
    assert (lone.mean, lone.low, lone.high, lone.clusters) == (1.5, None, None, 1) and math.isinf(lone.half_width)
    for bad in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite"):
            cluster_mean(bad, [0] * len(bad))


# -- phantoms ---------------------------------------------------------------------------------------------------------


def test_the_phantom_rate_is_the_unpaid_share():
    dreamed = np.ones((10, 2))
    assert phantom_rate(dreamed, dreamed) == 0 and phantom_rate(dreamed, 0 * dreamed) == 1
    assert phantom_rate(dreamed, 0.25 * dreamed) == pytest.approx(0.75)
    assert phantom_rate(dreamed, -5 * dreamed) == 1, "a share, whatever reality takes"
    assert phantom_rate(-dreamed, dreamed) == 0 and phantom_rate(dreamed, 3 * dreamed) == 0


def test_a_reward_paid_a_moment_later_is_no_phantom():
    dreamed, paid = np.zeros((10, 1)), np.zeros((10, 1))
    dreamed[1], paid[3] = 4, 4
    assert phantom_rate(dreamed, paid) == 0 and phantom_rate(dreamed, paid, block=1) == 1
    paid[3], paid[7] = 0, 4
    assert phantom_rate(dreamed, paid) == 1
    assert phantom_rate(dreamed[:7], paid[:7]) == 1, "a last, shorter block counts"


def test_events_match_within_two_steps_and_not_across_the_ends():
    dreamed, paid = np.zeros((10, 1)), np.zeros((10, 1))
    dreamed[[0, 4, 9]], paid[[2, 7]] = 1, 1
    assert event_rates(dreamed, paid) == {"phantom": 0.0, "missed": 0.0}
    assert event_rates(dreamed, paid, tolerance=1) == {"phantom": 1.0, "missed": 1.0}
    last, first = np.zeros((10, 1)), np.zeros((10, 1))
    last[9], first[0] = 1, 1
    assert event_rates(last, first) == {"phantom": 1.0, "missed": 1.0}
    assert event_rates(last, 0 * last) == {"phantom": 1.0, "missed": None}


def test_the_alarm_for_returns_that_reality_cannot_pay():
    assert impossible(np.array([5.0, 12.0]), np.array([10.0, 10.0])) == {"count": 1, "share": 0.5, "worst_excess": 2.0}
    rewards = [np.array([1.0, 2, 3, -9]), np.array([4.0])]
    assert observed_bound(rewards, 2, margin=0.5) == 5.5 and observed_bound(rewards, 9, margin=0.0) == 4
    bound = car_racing_bound(np.array([0.0, 600.0]), np.array([0, 100]), action_repeat=4)
    assert bound.tolist() == pytest.approx([1000.0, 360.0])  # 640 of 1000 were paid for tiles, less 40 for the time
