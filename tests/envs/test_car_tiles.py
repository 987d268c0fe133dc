"""Unvisited tiles brightened, against the tiles of the environment itself."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

import worldmodel.envs
from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.car_tiles import BRIGHT, DARK, GAP, brighten_tiles
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CONFIG = EnvConfig(see_tiles=True)


@pytest.fixture(scope="module", params=["CarRacing-v3", "worldmodel/CarRacing-v3"])
def driven(request: pytest.FixtureRequest) -> gym.Env:
    """After the zoom-in, on the first straight."""
    env = gym.make(request.param)
    env.reset(seed=5)
    for _ in range(70):
        env.step(np.array([0.0, 0.2, 0.0], np.float32))
    yield env
    env.close()


def shares(picture: np.ndarray) -> tuple[int, ...]:
    """Pixels that are dark, and pixels that are bright."""
    return tuple(int((picture[:84] == level).all(-1).sum()) for level in (DARK, BRIGHT))


def test_exactly_the_unvisited_tiles_are_bright(driven: gym.Env) -> None:
    car = driven.unwrapped
    before = car._render("state_pixels")
    dark, bright = shares(brighten_tiles(before))
    assert car.tile_visited_count > 5 and bright > dark > 300
    kept = [tile.color.copy() for tile in car.road]
    for tile in car.road:  # as a wheel would
        tile.color[:] = car.road_color
    after = brighten_tiles(car._render("state_pixels"))
    for tile, color in zip(car.road, kept, strict=True):
        tile.color[:] = color
    assert shares(after)[0] >= 0.9 * (dark + bright)
    assert shares(after)[1] <= 4  # where road, kerb and grass blend into a grey
    one = next(tile for tile in car.road if not tile.road_visited and tile.idx % 3)
    assert not np.array_equal(one.color, car.road_color)


def test_where_the_car_has_been_the_road_is_dark(driven: gym.Env) -> None:
    """Below the car, in the middle, the tiles it came over."""
    seen = brighten_tiles(driven.unwrapped._render("state_pixels"))
    assert (seen[80:84, 44:52] == DARK).all()
    ahead = seen[10:60, 44:52].reshape(-1, 3)
    assert (ahead == BRIGHT).all(-1).mean() > 0.9


def test_gaps_are_closed_as_the_definition_says() -> None:
    """Pixel by pixel: bright is what no square without an unvisited pixel can reach (a morphological closing)."""
    rng = np.random.default_rng(0)
    picture = np.full((96, 96, 3), 100, np.uint8)
    for row, column in rng.integers([0, 0], [84, 96], (250, 2)):
        picture[row, column] = 105
    lit = {(r, c) for r, c in zip(*np.nonzero(picture[:84, :, 0] == 105), strict=True)}

    def near(r: int, c: int) -> bool:
        return any((r + i, c + j) in lit for i in range(-GAP, GAP + 1) for j in range(-GAP, GAP + 1))

    wide = np.array([[near(r, c) for c in range(-GAP, 96 + GAP)] for r in range(-GAP, 84 + GAP)])
    wide[:GAP] = wide[-GAP:] = True  # nothing is known beyond the border, so nothing there forbids
    wide[:, :GAP] = wide[:, -GAP:] = True
    closed = np.array([[wide[r : r + 2 * GAP + 1, c : c + 2 * GAP + 1].all() for c in range(96)] for r in range(84)])
    seen = brighten_tiles(picture)[:84, :, 0]
    assert 0.2 < closed.mean() < 0.9 and np.array_equal(seen == BRIGHT, closed)
    assert set(np.unique(seen)) == {DARK, BRIGHT}


def test_all_but_the_road_stays_as_it_is(driven: gym.Env) -> None:
    picture = driven.unwrapped._render("state_pixels")
    kept = picture.copy()
    seen = brighten_tiles(picture)
    assert np.array_equal(picture, kept) and np.array_equal(seen[84:], picture[84:])
    changed = (seen != picture).any(-1)
    assert np.ptp(picture[changed].astype(int), axis=-1).max() == 0 and picture[changed].max() <= 107


def test_the_agent_sees_them_in_an_episode() -> None:
    plain, seen = make(dataclasses.replace(CONFIG, see_tiles=False)), make(CONFIG)
    assert Spaces.of(plain) == Spaces.of(seen)
    for env in (plain, seen):
        env.reset(seed=5)
    for _ in range(15):
        a, b = (env.step(np.array([0.0, 0.2], np.float32))[0]["image"] for env in (plain, seen))
    assert b.dtype == np.uint8 and b.astype(int).std() > a.astype(int).std() and not np.array_equal(a, b)


def test_an_agent_brightens_the_tiles_of_a_raw_picture_itself() -> None:
    config = dataclasses.replace(preset("debug"), env=dataclasses.replace(CONFIG, read_score=True))
    torch.manual_seed(0)
    agent = build(config, Spaces({"image": (64, 64, 3), "score": (20,)}, False, 2), torch.float32)
    picture, _ = gym.make("CarRacing-v3").reset(seed=1)
    wrapped, _ = make(config.env).reset(seed=1)
    inner = agent._canonical(picture, True)
    assert {name: value.tobytes() for name, value in inner.items()} == {n: v.tobytes() for n, v in wrapped.items()}


def test_other_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"--env\.see-tiles off"):
        worldmodel.envs.wrap(gym.make("CartPole-v1"), CONFIG)
