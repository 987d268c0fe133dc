"""`models/ensemble.py`: it learns, its heads are independent, and they part where nothing was seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodel.errors import UsageError
from worldmodel.models import ensemble as module
from worldmodel.models.ensemble import Ensemble, fit


def transitions(count=600, seed=1):
    """Features turn and are pushed by the action; within [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    features, action = (2 * torch.rand(count, n, generator=g) - 1 for n in (4, 2))
    following = 0.8 * features.roll(1, -1)
    following[:, :2] += 0.3 * torch.sin(2 * action)
    return features, action, following


def test_it_learns_what_follows():
    """Whatever the units of the features."""
    features, action, following = transitions()
    made = fit(20 + 5 * features, action, 20 + 5 * following, seed=3)
    assert made.mean.numpy() == pytest.approx((20 + 5 * features).mean(0).numpy(), rel=1e-5)
    features, action, following = transitions(200, seed=2)
    predicted = made(20 + 5 * features, action) * made.scale + made.mean
    error = (predicted - 20 - 5 * following).square().mean((1, 2))
    assert error.shape == (5,) and (error < 0.05 * 25 * following.var()).all()


def test_heads_agree_where_they_were_taught_and_not_elsewhere():
    made = fit(*transitions(), seed=3)
    features, action, _ = transitions(200, seed=2)
    known, unknown = made.disagreement(features, action), made.disagreement(4 * features, action)
    assert known.shape == (200,) and (known >= 0).all()
    assert unknown.median() > 10 * known.median()


def test_heads_side_by_side_are_heads_one_by_one():
    made = Ensemble(4, 2, heads=3, units=7, seed=5)
    features, action, _ = transitions(9)
    made.measure(3 * features + 1)
    together = made(features, action)
    for k in range(3):
        x = torch.cat([(features - made.mean) / made.scale, action], -1)
        for i in range(3):
            x = x @ made.weights[i][k] + made.biases[i][k]
            x = F.silu(x) if i < 2 else x
        torch.testing.assert_close(together[k], x)
    own = torch.stack([features.roll(k, 0) for k in range(3)]), torch.stack([action.roll(k, 0) for k in range(3)])
    for k in range(3):
        torch.testing.assert_close(made(*own)[k], together[k].roll(k, 0))


def test_disagreement_is_the_variance_over_heads():
    made = Ensemble(4, 2, heads=6, seed=5)
    features, action, _ = transitions(9)
    expected = made(features, action).detach().numpy().astype(np.float64).var(0).mean(-1)
    assert made.disagreement(features, action).detach().numpy() == pytest.approx(expected, rel=1e-5)


def test_units_do_not_make_rare_dimensions_loud():
    features = torch.zeros(1000, 3)
    features[:, 0], features[0, 1] = torch.arange(1000) % 2, 1.0
    made = Ensemble(3, 1)
    made.measure(features)
    variance = features.double().numpy().var(0)
    assert made.mean.numpy() == pytest.approx([0.5, 0.001, 0], abs=1e-6)
    assert made.scale.numpy() == pytest.approx(np.sqrt(variance + variance.mean()), rel=1e-4)
    assert made.scaled(features).abs().max() < 4, "a class seen once in a thousand would be 30"
    made.measure(torch.zeros(5, 3))
    assert made.scaled(torch.zeros(1, 3)).isfinite().all(), "nothing moves"


def test_every_head_sees_a_resample_of_its_own(monkeypatch):
    class Twins(Ensemble):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for weight in self.weights:
                weight.data[:] = weight.data[:1].clone()

    seen = []

    def noted(self, features, action):
        seen.append(features.clone())
        return Ensemble.forward(self, features, action)

    monkeypatch.setattr(Twins, "forward", noted)
    monkeypatch.setattr(module, "Ensemble", Twins)
    features, action, following = transitions(40)
    made = fit(features, action, following, heads=3, steps=50, batch=32)
    shown = torch.stack(seen)  # (steps, K, batch, F)
    kinds = [{tuple(row) for row in shown[:, k].flatten(0, 1).tolist()} for k in range(3)]
    assert all(20 <= len(kind) < 36 for kind in kinds), "about 63 % of the data each"
    assert kinds[0] != kinds[1] != kinds[2]
    assert (made.disagreement(features, action) > 0).all(), "the same weights at first"


def test_heads_begin_differently():
    made = fit(*transitions(), steps=0)
    assert (made.disagreement(*transitions()[:2]) > 0.001).all()


def test_the_same_seed_gives_the_same_and_no_global_stream_is_drawn_from():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    one, same, other = (fit(*transitions(), steps=5, seed=s) for s in (7, 7, 8))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1]) and torch.equal(torch.get_rng_state(), before[2])
    features, action, _ = transitions(20)
    assert torch.equal(one(features, action), same(features, action))
    assert not torch.equal(one(features, action), other(features, action))


def test_it_can_be_trained_where_gradients_are_off_and_needs_none_afterwards():
    with torch.no_grad():
        made = fit(*transitions(), steps=3)
    assert not any(p.requires_grad for p in made.parameters()) and not made.training


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="at least 2 heads"):
        Ensemble(3, 1, heads=1)
    with pytest.raises(UsageError, match="at least one transition"):
        fit(torch.zeros(0, 3), torch.zeros(0, 1), torch.zeros(0, 3))
