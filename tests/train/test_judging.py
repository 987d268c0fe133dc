"""What a run does with its real evaluations: they disturb nothing, the best agent is kept, a signal stops them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from run_helpers import Gambler, Judge, Told, content, metrics, opened, streams, tiny, train

from worldmodel import load, storage
from worldmodel.config import TRACKS
from worldmodel.errors import WorldModelError
from worldmodel.train import judging, loop

pytestmark = pytest.mark.usefixtures("quick")


def test_judging_disturbs_nothing(tmp_path: Path) -> None:
    """Evaluations happen by the clock, so they must leave every stream, episode and memory where they were."""
    with opened(tiny("test/Gambler-v0", prefill=120), tmp_path) as run:
        run.train()
        before = content(run)
        run.judging.judge()
        after = content(run)
        assert after["counters"].pop("best")["score"] is not None and before["counters"].pop("best") is None
        assert after == before
        assert streams(run) == before["streams"]
    assert len(list((tmp_path / "videos").glob("openloop-*.mp4"))) == 1
    kinds = [line["kind"] for line in metrics(tmp_path)]
    assert "eval" in kinds and "openloop" in kinds


def test_best_agent_is_kept_and_comes_from_the_selection_tracks(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [5.0, 3.0, 7.0]
    with opened(tiny(updates=3), tmp_path) as run:
        run.train()
        versions = []
        for _ in range(3):
            run.judging.judge()
            versions.append(storage.read_folder(tmp_path / "best")["card.json"]["selection"]["mean"])
    assert versions == [5.0, 5.0, 7.0]
    assert set(judge.seeds) == {TRACKS["select"], TRACKS["select"] + 1}


def test_the_card_tells_how_far_the_critic_looks(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run moves the discount along, an agent of its middle foretells other returns than one of its end."""
    judge.scores = [1.0, 2.0, 3.0]
    policy = dataclasses.replace(tiny().policy, discount=0.9, final_discount=0.975)
    with opened(tiny(updates=3, policy=policy), tmp_path) as run:
        run.train()
        for done, horizon in ((0.0, 10), (0.5, 20), (1.0, 40)):
            monkeypatch.setattr(run, "done", lambda done=done: done)
            run.judging.judge()
            assert 1 / (1 - load(tmp_path).discount) == pytest.approx(horizon)


def test_bug_best_agent_saved_after_the_last_checkpoint_was_overwritten_by_a_worse_one(
    tmp_path: Path, judge: Judge
) -> None:
    """Killed between judging and saving, the checkpoint knows nothing of RUN/best."""
    judge.scores = [9.0, 4.0]
    with opened(tiny(updates=3), tmp_path) as run:
        run.train()
        run.judging.judge()  # and no checkpoint after it
    with opened(tiny(updates=4), tmp_path) as run:
        assert run.judging.best["score"] == 9.0
        run.train()
        run.judging.judge()
        assert run.judging.best["score"] == 9.0
    assert storage.read_folder(tmp_path / "best")["card.json"]["selection"]["mean"] == 9.0


def test_a_run_that_is_never_judged_leaves_its_last_agent(tmp_path: Path) -> None:
    versions = []
    for updates in (3, 5):
        with opened(tiny(updates=updates), tmp_path) as run:
            run.train()
            assert run.judging.best is None
            last = run.dreamer.averaged_agent().version
        versions.append(load(tmp_path).version)
        assert versions[-1] == last
    assert versions[0] != versions[1]
    assert load(tmp_path).card["selection"] is None and load(tmp_path).card["cost"]["updates"] == 5


def test_a_judged_agent_is_not_replaced_by_one_that_is_not(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [5.0]
    train(tiny(updates=3, eval_minutes=99.0), tmp_path)
    train(tiny(updates=5), tmp_path)
    assert load(tmp_path).card["selection"]["mean"] == 5.0 and load(tmp_path).card["cost"]["updates"] == 3


def test_final_evaluation_happens_at_the_end_of_the_budget(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.5]
    with opened(tiny(updates=3, eval_minutes=99.0), tmp_path) as run:
        result = run.train()
    assert result["best"]["score"] == 1.5 and json.dumps(result)
    assert storage.exists(tmp_path / "best")


def test_bug_a_final_evaluation_that_failed_cost_the_training_since_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise WorldModelError("the environment failed at step 3 of the episode with seed 1000000")

    monkeypatch.setattr(judging, "evaluate", fail)
    with pytest.raises(WorldModelError, match="the environment failed"):
        train(tiny(updates=3, eval_minutes=99.0), tmp_path)
    with opened(tiny(updates=3), tmp_path) as run:
        assert run.dreamer.updates == 3


def test_bug_a_film_that_fails_stopped_the_training(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no ffmpeg here")

    monkeypatch.setattr(judging, "open_loop_video", fail)
    judge.scores, told = [1.0], Told()
    with opened(tiny(updates=3, eval_minutes=99.0), tmp_path, told) as run:
        assert run.train()["finished"]
    assert "no film of the dreams" in told.warnings[0] and "no ffmpeg here" in told.warnings[0]


# -- asked to stop in the middle of it --------------------------------------------------------------------------------


class Alarming(Gambler):
    """On the selection tracks: asks its own process to stop, and then drives on and on."""

    signal: int | None = None
    left = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        self.selection = kwargs["seed"] >= TRACKS["select"]
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.selection and self.signal:
            Alarming.left -= 1
            if not Alarming.left:
                os.kill(os.getpid(), self.signal)
            assert Alarming.left > -4, "it does not stop"
            terminated = truncated = False
        return obs, reward, terminated, truncated, info


@pytest.fixture
def alarming(monkeypatch: pytest.MonkeyPatch) -> type[Alarming]:
    monkeypatch.setitem(gym.registry, "test/Alarming-v0", gym.envs.registration.EnvSpec("test/Alarming-v0", Alarming))
    monkeypatch.setattr(judging, "open_loop_video", lambda *_: None)
    monkeypatch.setattr(Alarming, "signal", None)
    monkeypatch.setattr(Alarming, "left", 6)
    return Alarming


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("eval_minutes", [1e-9, 99.0], ids=["between", "last"])
def test_bug_asked_to_stop_in_an_evaluation_it_drove_all_episodes_to_their_end(
    tmp_path: Path, alarming: type[Alarming], eval_minutes: float, number: int, code: int
) -> None:
    """It stops at once and saves; the evaluation is not counted, and made by the session that goes on."""
    config = tiny("test/Alarming-v0", updates=7, eval_minutes=eval_minutes)
    whole = train(config, tmp_path / "whole")
    alarming.signal = number
    with opened(config, tmp_path / "halves") as run:
        result = run.train()
        assert (result["exit_code"], result["finished"], result["best"]) == (code, False, None)
        assert result["updates"] == (1 if eval_minutes < 1 else 7)
    assert not [line for line in metrics(tmp_path / "halves") if line["kind"] == "eval"]
    assert not storage.exists(tmp_path / "halves" / "best")
    alarming.signal = None
    told = Told()
    halves = train(config, tmp_path / "halves", told)
    assert told.warnings == []
    for run in (halves, whole):  # the clock decides when a score was measured
        run["counters"]["best"].pop("minutes")
    if eval_minutes > 1:
        assert halves == whole
        assert [line["updates"] for line in metrics(tmp_path / "halves") if line["kind"] == "eval"] == [7]
    else:
        assert {**halves, "counters": 0} == {**whole, "counters": 0}
    told = Told()
    train(config, tmp_path / "halves", told)
    assert "budget of this run is used up" in told.warnings[0], "and nothing is judged twice"


def test_the_pause_between_evaluations_is_that_of_the_run_not_of_the_session(tmp_path: Path, judge: Judge) -> None:
    """Otherwise a run that is stopped more often than it is judged would never be judged."""
    judge.scores = [1.0] * 3
    train(tiny(updates=3), tmp_path)
    with opened(tiny(updates=6, eval_minutes=1.0), tmp_path) as run:
        run.seconds += 61  # earlier sessions trained for a minute without being judged
        run.train()
    assert [line["updates"] for line in metrics(tmp_path) if line["kind"] == "eval"] == [4, 6]


def test_an_agent_is_not_judged_twice_at_the_end(tmp_path: Path, judge: Judge) -> None:
    """When the last evaluation of the loop used up the minutes that were left."""
    judge.scores = [1.0] * 2
    with opened(tiny(updates=0, minutes=60.0, eval_minutes=1.0), tmp_path) as run:
        run.seconds = 61.0
        real = run.judging.judge

        def slow() -> None:
            real()
            run.seconds = 3600.0

        run.judging.judge = slow
        run.train()
    assert [line["updates"] for line in metrics(tmp_path) if line["kind"] == "eval"] == [1]


@pytest.mark.parametrize(
    ("weight", "after", "words"),
    [
        (0.0, 0, "no replay value loss"),
        (0.3, 0, "a replay value loss of 0.3"),
        (0.3, 9, "a replay value loss of 0.3, of recent episodes with what came up to 9 steps later"),
    ],
)
def test_the_card_says_what_the_policy_learned_from(tmp_path: Path, weight: float, after: int, words: str) -> None:
    config = tiny()
    config = dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, replay_value=weight),
        replay=dataclasses.replace(config.replay, after=after),
    )
    with loop.Run(config, tmp_path / "run", Told()) as run:
        run.train()
    assert words in load(tmp_path / "run").card["learning"]
