"""Many dreams at once are so many single dreams, bit for bit, in all three modes of starting anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from dream_helpers import SPACES, Counter, counted, dreamer, same, stored
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import worldmodel.envs  # noqa: F401  (registers the dream)
from worldmodel.envs.dream import DreamEnv
from worldmodel.envs.dream_vector import DreamVectorEnv
from worldmodel.errors import UsageError

MODES = list(AutoresetMode)
N = 11
"""Dreams: one full batch of 8 and one that is filled up."""


def lives(env: VectorEnv, seed: Any, steps: int = 25) -> list[Any]:
    """All that `steps` random steps return, resetting what ended where that is the caller's duty."""
    env.action_space.seed(3)
    out: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        out.append(env.step(env.action_space.sample()))
        ended = out[-1][2] | out[-1][3]
        if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED and ended.any():
            out.append(env.reset(options={"reset_mask": ended}))
    return out


def ends(out: list[Any]) -> tuple[int, int]:
    """How often dreams ended: terminated, truncated."""
    steps = [one for one in out if len(one) == 5]
    return sum(int(step[2].sum()) for step in steps), sum(int(step[3].sum()) for step in steps)


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
@pytest.mark.parametrize(("obs", "discrete"), [("both", False), ("pixels", True), ("latent", False)])
def test_a_batch_is_so_many_single_dreams(mode: AutoresetMode, obs: str, discrete: bool) -> None:
    made = dreamer("both", discrete)
    options: dict[str, Any] = {"obs": obs, "horizon": 3}
    batched = DreamVectorEnv(made, N, autoreset_mode=mode, **options)
    single = SyncVectorEnv([lambda: DreamEnv(made, **options)] * N, autoreset_mode=mode)
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space", "num_envs"):
        assert getattr(batched, name) == getattr(single, name)
    assert batched.metadata == single.metadata and batched.render_mode is single.render_mode is None
    for seed, steps in ((4, 14), ([7 * i for i in range(N)], 2), (None, 6)):
        expected, actual = lives(single, seed, steps), lives(batched, seed, steps)
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert same(a, b), f"call {i} after the seed {seed}"
        if seed == 4:
            assert min(ends(expected)) > 10  # terminated, and truncated
    assert batched.np_random_seed == single.np_random_seed


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_any_size_of_batches_serves(rows: int) -> None:
    made = dreamer("image")
    expected = lives(SyncVectorEnv([lambda: DreamEnv(made, obs="latent", rows=rows, horizon=4)] * 5), 1, 10)
    assert same(lives(DreamVectorEnv(made, 5, obs="latent", rows=rows, horizon=4), 1, 10), expected)


def test_a_dream_does_not_know_its_neighbours() -> None:
    made = dreamer("image")

    def rewards(seeds: list[int], row: int) -> list[float]:
        env = DreamVectorEnv(made, len(seeds), obs="latent", cont="ignore")
        env.reset(seed=seeds)
        return [float(env.step(np.full((len(seeds), 3), 0.3, np.float32))[1][row]) for _ in range(5)]

    assert rewards([1, 2, 3], 1) == rewards([9] * 9 + [2], 9) != rewards([1, 2, 3], 0)


def test_starts_are_chosen_for_all_or_for_each() -> None:
    env = DreamVectorEnv(Counter(), 3, spaces=SPACES, starts=counted(), obs="latent", autoreset_mode="Disabled")
    assert env.reset(options={"start": 1})[1]["start"].tolist() == [1, 1, 1]
    seen, infos = env.reset(options={"start": [2, 0, 1]})
    assert infos["start"].tolist() == [2, 0, 1] and seen[:, 0].tolist() == [3, 1, 2]
    seen, infos = env.reset(options={"start": 2, "reset_mask": np.array([False, True, False])})
    assert infos["start"].tolist() == [0, 2, 0] and infos["_start"].tolist() == [False, True, False]
    assert seen[:, 0].tolist() == [3, 3, 2]  # the others dream on


def test_next_step_begins_anew_without_pay_and_without_asking_the_action() -> None:
    env = DreamVectorEnv(Counter(), 2, spaces=SPACES, starts=counted(), obs="latent", horizon=2)
    env.reset(seed=0)
    action = np.zeros((2, 3), np.float32)
    env.step(action)
    assert env.step(action)[3].all()
    _, rewards, terminated, truncated, infos = env.step(np.full((2, 3), np.nan, np.float32))
    assert not rewards.any() and not terminated.any() and not truncated.any()
    assert infos["imagined_steps"].tolist() == [0, 0]


def test_same_step_tells_of_the_end() -> None:
    env = DreamVectorEnv(Counter(), 2, spaces=SPACES, starts=counted(), obs="latent", horizon=2,
                         autoreset_mode=AutoresetMode.SAME_STEP)  # fmt: skip
    env.reset(seed=0, options={"start": 2})
    env.step(np.zeros((2, 3), np.float32))
    seen, rewards, _, truncated, infos = env.step(np.zeros((2, 3), np.float32))
    assert truncated.all() and rewards.tolist() == [50, 50]
    assert [final[0] for final in infos["final_obs"]] == [5, 5] and infos["final_info"]["imagined_steps"].tolist() == [
        2,
        2,
    ]
    assert infos["imagined_steps"].tolist() == [0, 0] and (seen[:, 0] == infos["start"] + 1).all()


def test_returned_arrays_are_the_callers_own() -> None:
    env = DreamVectorEnv(dreamer("image"), 3, obs="both", cont="ignore")
    first, _ = env.reset(seed=0)
    second = env.step(env.action_space.sample())[0]
    kept = {name: value.copy() for name, value in first.items()}
    second["latent"][:] = 9
    second["pixels"][:] = 9
    third = env.step(env.action_space.sample())[0]
    assert same(first, kept) and not (third["latent"] == 9).all() and env.observation_space.contains(third)


def test_make_vec_makes_the_batched_one(tmp_path: Path) -> None:
    path = stored(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("worldmodel/Dream-v0", num_envs=3, checkpoint=path, obs="latent", autoreset_mode="SameStep")
    assert isinstance(env, DreamVectorEnv) and env.num_envs == 3 and env.spec.id == "worldmodel/Dream-v0"
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert isinstance(gym.make_vec("worldmodel/Dream-v0", 2, "sync", checkpoint=path), SyncVectorEnv)


def test_pictures_of_all_dreams() -> None:
    env = DreamVectorEnv(dreamer("image"), 9, render_mode="rgb_array")
    seen, _ = env.reset(seed=0)
    assert same(env.render(), tuple(seen)) and DreamVectorEnv(dreamer("image"), 1).render() is None


def test_spawned_processes_dream_the_same(tmp_path: Path) -> None:
    path = stored(tmp_path)
    make: Callable[[], gym.Env] = _Make(path)
    spawned = AsyncVectorEnv([make] * 2, context="spawn")
    try:
        actual = lives(spawned, 3, 5)
    finally:
        spawned.close()
    assert same(actual, lives(DreamVectorEnv(path, 2, obs="both", horizon=3), 3, 5))


class _Make:
    """Makes a dream in another process, as a user would: the module named before the id registers it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self) -> gym.Env:
        import torch

        torch.set_num_threads(1)
        return gym.make("worldmodel.envs:worldmodel/Dream-v0", checkpoint=self.path, obs="both", horizon=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.zeros((2, 3), np.float32)), "have not begun: call reset first"),
        (lambda env: env.reset(seed=[1, 2, 3]), "3 seeds for 2 dreams"),
        (lambda env: env.reset(options={"start": [0]}), "1 starts for 2 dreams"),
        (lambda env: env.reset(options={"reset_mask": np.zeros(2, bool)}), "False everywhere"),
        (lambda env: env.reset(options={"reset_mask": [True, True]}), "must be a numpy array of 2 bools"),
        (lambda env: env.reset(options={"reset_mask": np.array([True, False])}), "reset all dreams before"),
        (lambda env: (env.reset(), env.step(np.zeros((3, 3), np.float32))), "3 actions for 2 dreams"),
    ],
)
def test_wrong_calls_are_named(call: Callable[[VectorEnv], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call(DreamVectorEnv(Counter(), 2, spaces=SPACES, starts=counted(), obs="latent"))


def test_an_ended_dream_is_not_stepped_where_resets_are_the_callers_duty() -> None:
    env = DreamVectorEnv(
        Counter(), 2, spaces=SPACES, starts=counted(), obs="latent", horizon=2, autoreset_mode="Disabled"
    )
    env.reset(seed=0)
    action = np.zeros((2, 3), np.float32)
    env.step(action)
    env.step(action)
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(UsageError, match="dream 1 has not begun or is over"):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"num_envs": 0}, "at least 1"), ({"autoreset_mode": "Never"}, "'NextStep'")]
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DreamVectorEnv(dreamer(), **arguments)
