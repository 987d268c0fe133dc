"""Measuring neither disturbs the global generators, nor depends on who shares the batch."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from worldmodel.randomness import RowNoise, TiledNoise, generator, local_randomness


def snapshot():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


def test_local_randomness_gives_back_what_it_borrowed():
    before = snapshot()
    with local_randomness(3):
        first = random.random(), np.random.rand(), torch.rand(1).item()
    assert snapshot() == before
    with pytest.raises(ZeroDivisionError), local_randomness(3):
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == first
        raise ZeroDivisionError
    assert snapshot() == before
    with local_randomness(4):
        assert (random.random(), np.random.rand(), torch.rand(1).item()) != first


def test_generators_of_different_keys_differ():
    keys = [(0,), (1,), (2,), (1, 2), (2, 1), (1, 0, 0), (2**40,)]
    draws = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert torch.equal(torch.rand(4, generator=generator(1, 2)), torch.rand(4, generator=generator(1, 2)))


DRAWS = {
    "rand": lambda b: torch.rand(b, 3, 1),
    "rand tuple": lambda b: torch.rand((b, 3), device="cpu"),
    "rand size": lambda b: torch.rand(size=(b, 3)),
    "randn": lambda b: torch.randn(b, 2),
    "rand_like": lambda b: torch.rand_like(torch.zeros(b, 2)),
    "randn_like": lambda b: torch.randn_like(torch.zeros(b, 2)),
    "normal": lambda b: torch.normal(torch.full((b, 2), 5.0), 0.1),
    "multinomial": lambda b: torch.multinomial(torch.ones(b, 50), 2).float(),
    "distribution": lambda b: torch.distributions.Normal(torch.zeros(b, 2), 1.0).sample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_draws_the_same_whatever_the_batch(name):
    before = snapshot()
    with RowNoise([generator(k) for k in (1, 2, 3)]):
        three = DRAWS[name](3)
    with RowNoise([generator(k) for k in (9, 2)]):
        two = DRAWS[name](2)
    with RowNoise([generator(3)]):
        one = DRAWS[name](1)
    assert three.shape[0] == 3
    assert torch.equal(three[1], two[1])
    assert torch.equal(three[2], one[0])
    assert not torch.equal(three[0], three[1])
    assert snapshot() == before


def test_row_noise_has_the_right_distribution():
    generators = [generator(k) for k in range(4)]
    with RowNoise(generators):
        uniform, normal = torch.rand(4, 20_000), torch.normal(torch.full((4, 20_000), 5.0), 0.5)
    assert uniform.mean(1).sub(0.5).abs().max() < 0.02
    assert uniform.min() >= 0 and uniform.max() < 1
    assert normal.mean(1).sub(5).abs().max() < 0.02
    assert normal.std(1).sub(0.5).abs().max() < 0.02


def test_other_draws_and_explicit_generators_pass_through():
    with RowNoise([generator(1), generator(2)]):
        torch.manual_seed(0)
        through = torch.rand(5)  # not one row a trajectory
        own = torch.rand(2, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)
    assert torch.equal(through, torch.rand(5))
    assert torch.equal(own, torch.rand(2, generator=torch.Generator().manual_seed(7)))


TILED = {name: draw for name, draw in DRAWS.items() if name.startswith("rand")}


@pytest.mark.parametrize("name", TILED)
def test_tiled_noise_is_that_of_one_copy_for_all(name):
    torch.manual_seed(4)
    one = TILED[name](5)
    torch.manual_seed(4)
    with TiledNoise(3, 5):
        many = TILED[name](15)
        other = torch.rand(14)
    assert many.shape == (15, *one.shape[1:]) and many.dtype == one.dtype
    assert torch.equal(many.unflatten(0, (3, 5)), one.expand(3, *one.shape))
    assert len(set(other.tolist())) == 14, "another number of rows is somebody else's"


def test_tiled_noise_leaves_alone_what_has_a_generator_of_its_own_or_only_one_copy():
    torch.manual_seed(4)
    whole = torch.rand(6, 2)
    torch.manual_seed(4)
    with TiledNoise(1, 6):
        assert torch.equal(torch.rand(6, 2), whole)
    with TiledNoise(2, 3):
        drawn = torch.rand(6, 2, generator=generator(1))
    assert torch.equal(drawn, torch.rand(6, 2, generator=generator(1)))
