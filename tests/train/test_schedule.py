"""The plan of a run is arithmetic that a person can check; measuring the pace leaves no trace."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from run_helpers import tiny
from tiny import tensors

from worldmodel.config import Config, EnvConfig, ReplayConfig
from worldmodel.envs import Spaces, make
from worldmodel.errors import UsageError
from worldmodel.train import schedule
from worldmodel.train.learner import Learner
from worldmodel.train.schedule import Pace, fast_precision, find_device, measure, plan, random_batch

REPLAY = ReplayConfig(batch=32, length=16)
CONFIG = Config(prefill=1000, pretrain=100, train_every=4.0, minutes=0.0, eval_minutes=0.0, replay=REPLAY)
"""Before the policy acts: 1000 steps of 0.01 s and 100 updates of 0.5 s = 60 s. After that 0.54 s an update."""


def planned(**budgets: Any) -> schedule.Plan:
    return plan(dataclasses.replace(CONFIG, **budgets), Pace(0.5, 0.01), 20_000, 250)


def test_minutes_by_hand() -> None:
    """10 min = 600 s, 540 of them after the first 60: 1000 more updates, 4000 more steps."""
    made = planned(minutes=10.0)
    assert (made.updates, made.steps, made.frames, made.limit) == (1100, 5000, 20_000, "minutes")
    assert made.minutes == pytest.approx(10.0)
    assert made.replays == pytest.approx(1100 * 32 * 16 / 5000)
    assert made.replay_gigabytes == pytest.approx(5000 * 20_000 / 1e9)


def test_frames_by_hand() -> None:
    """20,000 frames of 4 a step = 5000 steps, 4000 of them after the prefill."""
    made = planned(frames=20_000)
    assert (made.updates, made.steps, made.frames, made.limit) == (1100, 5000, 20_000, "frames")
    assert made.minutes == pytest.approx(10.0)


def test_updates_by_hand() -> None:
    made = planned(updates=600)
    assert (made.updates, made.steps, made.frames, made.limit) == (600, 3000, 12_000, "updates")
    assert made.minutes == pytest.approx((60 + 500 * 0.54) / 60)


def test_the_frozen_regime_collects_nothing_after_the_prefill() -> None:
    """1000 steps = 10 s, then 590 s of updates; frames do not end it, unless they end within the prefill."""
    made = planned(minutes=10.0, frames=20_000, train_every=0.0)
    assert (made.updates, made.steps, made.frames, made.limit) == (1180, 1000, 4000, "minutes")
    made = planned(updates=600, train_every=0.0)
    assert (made.updates, made.steps) == (600, 1000) and made.minutes == pytest.approx((10 + 300) / 60)
    made = planned(minutes=10.0, frames=400, train_every=0.0)
    assert (made.updates, made.steps, made.limit) == (0, 100, "frames")


def test_the_smallest_budget_decides() -> None:
    assert planned(minutes=10.0, frames=20_000, updates=99).limit == "updates"
    assert planned(minutes=10.0, frames=4_400, updates=1000).limit == "frames"
    assert planned(minutes=1.5, frames=20_000, updates=1000).limit == "minutes"


def test_bug_budgets_that_end_early_were_planned_as_if_they_did_not() -> None:
    """Within the pretraining: 40 updates are 20 s, not 50. Within the prefill: nothing after the budget."""
    made = planned(updates=40)
    assert (made.updates, made.steps) == (40, 1000) and made.minutes == pytest.approx((10 + 20) / 60)
    made = planned(frames=400)
    assert (made.updates, made.steps, made.frames) == (0, 100, 400) and made.minutes == pytest.approx(1 / 60)
    made = planned(minutes=0.1)
    assert (made.updates, made.steps) == (0, 600) and made.minutes == pytest.approx(0.1)


def test_memory_is_capped() -> None:
    config = dataclasses.replace(CONFIG, updates=10**6, replay=ReplayConfig(gigabytes=2.0))
    assert plan(config, Pace(0.5, 0.01), 20_000, 250).replay_gigabytes == 2.0


# -- evaluations ------------------------------------------------------------------------------------------------------


def test_bug_the_plan_left_out_the_time_of_evaluations() -> None:
    """10 episodes of 250 steps of 0.01 s = 25 s, every 120 s: 4 of them and 500 s of training are in 10 minutes, 440
    of these after the first 60. The last evaluation comes after that."""
    made = planned(minutes=10.0, eval_minutes=2.0, eval_episodes=10)
    assert (made.evaluations, made.evaluation_seconds) == (5, pytest.approx(25.0))
    assert made.updates == int(100 + 440 / 0.54) == 914 and made.steps == 1000 + 814 * 4
    assert made.minutes == pytest.approx(10 + 25 / 60, abs=0.01)
    made = planned(updates=600, eval_minutes=2.0, eval_episodes=10)  # 330 s, judged after 120, 240 and at the end
    assert (made.updates, made.evaluations) == (600, 3) and made.minutes == pytest.approx((330 + 75) / 60)
    assert "600 updates of 0.50 s; 3 evaluations of up to 25 s; each step is replayed" in str(made)
    assert "evaluations" not in str(planned(updates=600))


def test_a_run_shorter_than_the_pause_is_judged_once_and_one_that_learns_nothing_never() -> None:
    made = planned(minutes=10.0, eval_minutes=30.0)
    assert (made.evaluations, made.updates) == (1, 1100) and made.minutes == pytest.approx(10 + 25 / 60)
    assert planned(frames=400, eval_minutes=2.0).evaluations == 0


def lived(config: Config, update: float, step: float, judging: float) -> tuple[int, int, int]:
    """(updates, steps, evaluations) of a run, second by second as `Run.train` spends them."""
    now, judged, updates, steps, evaluations, last = 0.0, 0.0, 0, 0, 0, 0
    while now < config.minutes * 60 and (not config.updates or updates < config.updates):
        if steps < config.prefill or updates >= config.pretrain + (steps - config.prefill) / config.train_every:
            steps, now = steps + 1, now + step
        else:
            updates, now = updates + 1, now + update
        if updates and 0 < config.eval_minutes < (now - judged) / 60:
            evaluations, now = evaluations + 1, now + judging
            judged, last = now, updates
    return updates, steps, evaluations + (last < updates)


@pytest.mark.parametrize("eval_minutes", [1.5, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("budget", [{"minutes": 11.0}, {"minutes": 14.3}, {"minutes": 60.0, "updates": 900}])
def test_plans_against_a_run_lived_second_by_second(budget: dict[str, Any], eval_minutes: float) -> None:
    config = dataclasses.replace(CONFIG, eval_minutes=eval_minutes, **budget)
    updates, steps, evaluations = lived(config, 0.5, 0.01, 25.0)
    made = plan(config, Pace(0.5, 0.01), 20_000, 250)
    assert made.evaluations == evaluations
    late = 1 + evaluations  # updates: an evaluation waits for the one that is under way
    assert made.updates == pytest.approx(updates, abs=late) and made.steps == pytest.approx(steps, abs=4 * late)


def test_fresh_policies_by_hand() -> None:
    """Each learns for 100 s: the two in mid-run within the 600 s, the last, of three members, after them."""
    config = dataclasses.replace(CONFIG, minutes=10.0, relearn=500, relearn_times=3, relearn_members=3)
    made = plan(config, Pace(0.5, 0.01, 0.2), 20_000, 250)
    assert made.updates == 100 + int((600 - 60 - 200) / 0.54)
    assert made.minutes == pytest.approx(10 + 5, abs=0.01) and made.relearning == pytest.approx(500 / 60)
    assert "fresh policies learn for 8 min" in str(made) and "fresh" not in str(planned(minutes=10.0))


def test_the_longest_episode_is_the_time_limit() -> None:
    for name, repeat, steps in (("CartPole-v1", 1, 500), ("CartPole-v1", 3, 167), ("worldmodel/Corridor-v0", 4, 250)):
        env = make(EnvConfig(id=name, action_repeat=repeat, image_size=0))
        assert schedule.longest_episode(env, repeat) == steps, name


def test_a_plan_reads_well() -> None:
    text = str(planned(minutes=600.0))
    assert text.startswith("10.0 h expected on this machine, ended by --minutes: ")
    assert "updates of 0.50 s" in text and "agent steps" in text and "GB" in text
    assert str(planned(minutes=10.0)).startswith("10 min expected on this machine")
    assert "20,000 environment frames = 5,000 agent steps, 1,100 updates" in str(planned(minutes=10.0))
    assert str(planned(updates=40)).startswith("30 s expected"), "not 0 min"


# -- measuring --------------------------------------------------------------------------------------------------------


def standing() -> tuple[Any, ...]:
    numpy = np.random.get_state(legacy=False)
    return torch.get_rng_state().tolist(), str(numpy["state"]["key"].tolist()), numpy["state"]["pos"], random.getstate()


def test_bug_measuring_moved_the_random_streams_of_environments_that_use_the_global_ones() -> None:
    config = tiny("test/Gambler-v0")
    before = standing()
    update, step, dream = measure(config, Spaces.of(make(config.env)), "cpu", updates=1, steps=60)
    assert standing() == before
    assert 0 < step < update < 60 and 0 < dream < update


def test_measure_takes_what_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update is not counted: it allocates."""
    clock = iter(range(100))
    monkeypatch.setattr(schedule.time, "perf_counter", lambda: float(next(clock)))
    updates = []
    monkeypatch.setattr(Learner, "update", lambda self, batch: updates.append(batch))
    config = tiny()
    made = measure(config, Spaces.of(make(config.env)), "cpu", updates=4, steps=10)
    assert len(updates) == 5 and made == (1 / 4, 1 / 10, 0.0)


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("env", ["worldmodel/Corridor-v0", "test/CorridorBoth-v0"])
def test_random_batch_has_the_shapes_of_a_real_one(env: str, after: int) -> None:
    from worldmodel.replay import Replay

    config = tiny(env)
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, after=after))
    spaces = Spaces.of(make(config.env))
    replay = Replay(spaces, 24, 0.001, config.replay.length, 1, 0, after=after)
    obs = {n: np.zeros(s, np.uint8 if len(s) == 3 else np.float32) for n, s in spaces.observations.items()}
    for _ in range(30):
        replay.add(obs, action=np.zeros(spaces.actions), reward=0.0, is_first=False, is_terminal=False)
    real, _ = replay.sample(config.replay.batch)
    made = random_batch(config, spaces, 24, "cpu")
    a, b = tensors(real), tensors(made)
    assert {n: (x.shape, x.dtype) for n, x in a.items()} == {n: (x.shape, x.dtype) for n, x in b.items()}


def test_device_and_precision() -> None:
    assert find_device("cpu") == "cpu"
    assert find_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="--device nonsense: torch cannot use it here; use cpu, cuda"):
        find_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"--device cuda:1: torch \S+ finds no CUDA device here; use cpu or auto"):
            find_device("cuda:1")
    assert fast_precision("cuda") == "bfloat16"


def test_precision_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles, products, precision in (
        (True, True, "bfloat16"),
        (True, False, "bfloat16"),
        (False, True, "bfloat16"),
        (False, False, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda products=products: products)
        assert fast_precision("cpu") == precision
