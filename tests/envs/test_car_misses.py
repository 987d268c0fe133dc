"""Tiles left behind untouched, counted in CarRacing's pictures, against the tiles of the environment itself."""

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
from worldmodel.envs.car_misses import COLUMNS, MARGIN, ROWS, Misses, read_speed
from worldmodel.envs.car_tiles import unvisited_road
from worldmodel.envs.pursuit import pursuit
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CONFIG = EnvConfig(see_misses=True)


def throttle(step: int) -> np.ndarray:
    """Full throttle, then a slide, then the brakes."""
    return np.array([0.0 if step < 40 else 0.6, 1.0 if step < 60 else -0.5], np.float32)


def drive(env: gym.Env, seed: int, frames: int, aside: range = range(0)) -> tuple[float, int, int]:
    """Follows the road, `aside` of it in these frames (by 14 units, where the road is 6.7 to either side).

    Returns the tiles counted in every fourth picture, those the environment says were left behind, and those touched.
    """
    base = env.unwrapped
    env.reset(seed=seed)
    count, track = Misses(), np.array(base.track)
    plain = track.copy()
    counted, reached = 0.0, 0
    for frame in range(1, frames + 1):
        shift = 14.0 * (frame in aside)
        base.track = [(a, b, x + shift * np.cos(b), y + shift * np.sin(b)) for a, b, x, y in plain]
        picture, *_ = env.step(pursuit(env))
        base.track = [tuple(row) for row in plain]
        if frame % 4 == 0:
            counted = count.see(picture, 4)
        near = int(((plain[:, 2:4] - base.car.hull.position) ** 2).sum(1).argmin())
        reached = max(reached, near) if near < reached + 20 else reached
    left = [tile for tile in base.road if tile.idx < reached - 2 and not tile.road_visited]
    return counted, len(left), base.tile_visited_count


@pytest.mark.parametrize("name", ["CarRacing-v3", "worldmodel/CarRacing-v3"])
def test_whoever_touches_every_tile_has_missed_none(name: str) -> None:
    with gym.make(name) as env:
        counted, left, touched = drive(env, seed=3, frames=300)
    assert counted == left == 0 and touched > 40


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_tiles_driven_past_are_counted(seed: int) -> None:
    with gym.make("worldmodel/CarRacing-v3") as env:
        counted, left, _ = drive(env, seed, frames=600, aside=range(200, 300))
    assert left >= 6 and counted == pytest.approx(left, rel=0.4)


def test_who_stands_still_misses_nothing_and_a_new_episode_begins_with_none() -> None:
    """At the start the last tiles of the lap lie behind the car, unvisited."""
    env = make(CONFIG)
    for seed in (1, 2):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs) and obs["missed"].shape == (20,) and not obs["missed"].any()
        for _ in range(30):
            obs, *_ = env.step(np.zeros(2, np.float32))
        assert not obs["missed"].any()
        for _ in range(40):  # across the grass
            obs, *_ = env.step(np.array([0.3, 0.5], np.float32))
        assert obs["missed"].sum() > 1


def test_a_strip_of_the_picture_tells_what_the_whole_would() -> None:
    rng = np.random.default_rng(0)
    picture = np.where(rng.random((96, 96, 1)) < 0.03, 105, 100).astype(np.uint8).repeat(3, 2)
    whole = unvisited_road(picture[: ROWS.stop])[ROWS, COLUMNS]
    strip = unvisited_road(picture[ROWS.start - MARGIN : ROWS.stop])[MARGIN:, COLUMNS]
    short = unvisited_road(picture[ROWS])[:, COLUMNS]
    assert np.array_equal(strip, whole) and not np.array_equal(short, whole)


def test_left_and_right_count_alike() -> None:
    with gym.make("worldmodel/CarRacing-v3") as env:
        env.reset(seed=3)
        ours, theirs = Misses(), Misses()
        for step in range(400):
            picture, *_ = env.step(pursuit(env) * np.array([1 if step < 150 else 0.0, 1, 1], np.float32))
            if step % 4 == 3:
                mirrored = picture.copy()
                mirrored[:84] = picture[:84, ::-1]
                assert ours.see(picture, 4) == theirs.see(mirrored, 4)
    assert ours.missed > 0


@pytest.mark.parametrize("name", ["CarRacing-v3", "worldmodel/CarRacing-v3"])
def test_speed_against_the_simulator(name: str) -> None:
    env = make(dataclasses.replace(CONFIG, id=name, see_misses=False, image_size=0))
    env.reset(seed=3)
    wrong, fastest = [], 0.0
    for step in range(80):
        picture = env.step(throttle(step))[0]["image"]
        truth = float(np.linalg.norm(env.unwrapped.car.hull.linearVelocity))
        wrong.append(read_speed(picture) - truth)
        fastest = max(fastest, truth)
    assert fastest > 60 and np.abs(wrong).max() < 2 and abs(np.mean(wrong)) < 0.5


@pytest.mark.parametrize(("score", "tiles", "time"), [(False, False, False), (True, True, True)])
def test_an_agent_reads_the_same_from_raw_pictures(score: bool, tiles: bool, time: bool) -> None:
    seen = dataclasses.replace(CONFIG, read_score=score, see_tiles=tiles, see_time=time)
    env, raw = make(seen), make(EnvConfig(image_size=0))
    spaces = Spaces.of(env)
    assert set(spaces.observations) == {"image", "missed"} | ({"score", "time"} if score else set())
    torch.manual_seed(0)
    agent = build(dataclasses.replace(preset("debug"), env=seen), spaces, torch.float32)
    for seed in (1, 2):
        ours, theirs = env.reset(seed=seed)[0], raw.reset(seed=seed)[0]["image"]
        for step in range(60):
            inner = agent._canonical(theirs, step == 0)
            assert {n: v.tobytes() for n, v in inner.items()} == {n: ours[n].tobytes() for n in inner}
            action = throttle(step) + np.array([0.3 * (step > 15), 0], np.float32)
            ours, theirs = env.step(action)[0], raw.step(action)[0]["image"]
        assert ours["missed"].any()


def test_other_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"--env\.see-misses off"):
        worldmodel.envs.wrap(gym.make("CartPole-v1"), CONFIG)
