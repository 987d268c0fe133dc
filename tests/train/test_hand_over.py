"""The hand-over: from some point on a fresh policy drives, and only the world learns."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Judge, Told, flip, opened, tiny, told, train

from worldmodel.agent import Agent
from worldmodel.config import Config
from worldmodel.errors import UsageError
from worldmodel.train import judging
from worldmodel.train.check import check
from worldmodel.train.frozen import driver_due
from worldmodel.train.loop import Run

pytestmark = pytest.mark.usefixtures("quick")

SCORES = [5.0, 3.0, 5.0, 6.0]
"""The run's own policy and the fresh one at the hand-over; the best of them and the last fresh one at the end."""


def handing_over(**changes: Any) -> Config:
    defaults = dict(updates=60, eval_minutes=99.0, relearn=2, relearn_members=2, world_only_from=0.3)
    return tiny(**(defaults | changes))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.dreamer.tensors().items()}


def changed(run: Run, before: dict[str, torch.Tensor]) -> set[str]:
    """Whose live weights and moments; averages go on approaching what stays as it is."""
    now = {name: value for name, value in run.dreamer.tensors().items() if not name.startswith("average.")}
    return {name.split(".")[1] for name, value in now.items() if not torch.equal(value, before[name])}


def test_a_fresh_policy_drives_and_only_the_world_learns(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.scores = list(SCORES)
    at: dict[str, Any] = {}
    with opened(handing_over(), tmp_path, heard := Told()) as run:
        real, step = run.judging._take_the_wheel, run.collector.step
        sampled: list[tuple[bool, bool]] = []

        def take(turn: int) -> None:
            real(turn)
            at.update(updates=run.dreamer.updates, done=run.done(), weights=weights(run), step=run.replay.total)
            assert run.collector.length == 0, "an episode is driven by one alone"

        monkeypatch.setattr(run.judging, "_take_the_wheel", take)
        run.collector.step = lambda random, sample=True, stumble=False: (
            None if random else sampled.append((run.judging.handed_over > 0, sample)),
            step(random, sample, stumble),
        )[1]
        run.train()
        assert changed(run, at["weights"]) == {"world"}
        assert 0.3 <= at["done"] < 0.8 and run.dreamer.updates == 60
        assert set(sampled) == {(False, True), (True, False)}, "as it is judged, from then on"
        driver, drives = Agent.load(tmp_path / "driver"), run.collector.agent
        assert drives.version == driver.version != Agent.load(tmp_path).version
        assert len(driver.policy.members) == 2 and drives.acted == driver.acted
    evals = told(tmp_path, "eval")
    assert [(line["updates"], line.get("relearned", False)) for line in evals] == [
        (at["updates"], False), (at["updates"], True),
    ]  # fmt: skip
    assert [(line["agent"], line["mean"]) for line in told(tmp_path, "final")] == [("best", 5.0), ("fresh", 6.0)]
    assert "the fresh policy drives from now on, and only the world learns" in heard.text
    assert Agent.load(tmp_path).version == Agent.load(tmp_path / "fresh").version


def test_a_world_only_update_is_half_an_update(tmp_path: Path) -> None:
    """The world moves to the very bit as it does beside a policy, which stays as it is."""
    with opened(tiny(updates=10), tmp_path) as run:
        run.train()
        batch, _ = run.replay.sample(4, "cpu")
        results = []
        for world_only in (False, True):
            before = weights(run)
            torch.manual_seed(3)
            metrics, _ = run.dreamer.update(batch, 0.5, world_only)
            results.append({name: value for name, value in weights(run).items() if ".world." in name})
            assert changed(run, before) == ({"world"} if world_only else {"world", "policy"})
            assert any(name.startswith("policy/") for name in metrics) != world_only
            run.dreamer.load_tensors(before, run.dreamer.updates - 1)
        assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("stop", [45, 53, 59])
def test_stopped_and_resumed_it_ends_the_same(tmp_path: Path, judge: Judge, stop: int) -> None:
    judge.scores = list(SCORES)
    whole = train(handing_over(), tmp_path / "whole")
    judge.scores = list(SCORES)
    with opened(handing_over(), tmp_path / "a") as run:
        real = run.dreamer.update

        def update(*args: Any) -> Any:
            if run.dreamer.updates + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        run.dreamer.update = update
        run.train()
        assert run.dreamer.updates == stop and run.judging.handed_over
    again = train(handing_over(), tmp_path / "a")
    for part in ("learner", "streams", "replay", "episode"):
        assert again[part] == whole[part], part


@pytest.mark.parametrize("moment", ["judging", "relearning", "judged fresh"])
def test_a_signal_abandons_it_and_the_next_session_makes_up_for_it(tmp_path: Path, judge: Judge, moment: str) -> None:
    judge.scores = [4.0, *SCORES] if moment == "judged fresh" else list(SCORES)
    with opened(handing_over(), tmp_path) as run:
        asked: list[str] = []

        def stop(what: str) -> None:
            asked.append(what)
            if what == moment or (moment == "judged fresh" and asked == ["judging", "relearning", "judging"]):
                os.kill(os.getpid(), signal.SIGTERM)

        run.progress.judging = lambda episodes: stop("judging")
        run.progress.relearning = lambda updates: stop("relearning")
        run.train()
        assert not run.judging.handed_over and run.judging.renewals == 0 and not (tmp_path / "driver").exists()
    judge.scores = list(SCORES)
    with opened(handing_over(), tmp_path) as run:
        run.train()
        assert run.judging.handed_over and run.dreamer.updates == 60
    assert (tmp_path / "driver").exists()


def test_more_budget_goes_on_with_who_drove(tmp_path: Path, judge: Judge) -> None:
    """RUN/best is another by then; its filter would not understand the state of the running episode."""
    judge.scores = [*SCORES, 6.0, 7.0]
    with opened(handing_over(), tmp_path) as run:
        run.train()
        before = run.collector.agent.version, run.collector.agent.state.clone()
    with opened(handing_over(updates=70), tmp_path) as run:
        assert run.collector.agent.version == before[0] and torch.equal(run.collector.agent.state, before[1])
        run.train()
        assert run.judging.best["score"] == 7.0 and run.judging.concluded()
    assert len(told(tmp_path, "eval")) == 2 and len(told(tmp_path, "final")) == 4


def test_who_drives_stumbles_in_its_share_of_episodes(tmp_path: Path, judge: Judge) -> None:
    """And a run that is stopped in the middle of a slip ends the same."""
    config = handing_over(updates=80, stumbles=0.5)
    judge.scores = list(SCORES)
    whole = train(config, tmp_path / "whole")
    judge.scores = list(SCORES)
    with opened(config, tmp_path / "a") as run:
        real = run.collector.step

        def step(*args: Any, **options: Any) -> bool:
            ended = real(*args, **options)
            if run.judging.handed_over and run.collector.stumbles.state_dict()["left"]:
                os.kill(os.getpid(), signal.SIGTERM)
            return ended

        run.collector.step = step
        run.train()
        assert run.dreamer.updates < 80 and run.collector.slipped
    again = train(config, tmp_path / "a")
    for part in ("learner", "streams", "replay", "episode"):
        assert again[part] == whole[part], part
    before, after = [], []
    taken = next(line["updates"] for line in told(tmp_path / "a", "eval") if line.get("relearned"))
    for line in told(tmp_path / "a", "episode"):
        (after if line["updates"] > taken else before).append((line["episode"], line["slipped"]))
    assert before and not any(slipped for _, slipped in before)
    assert any(slipped for _, slipped in after) and not any(slipped for episode, slipped in after if not episode % 2)


def test_drivers_take_turns(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    judge.scores = [5.0, 3.0, 4.0, 5.5, 6.0]
    config = handing_over(updates=90, drivers=2)
    whole = train(config, tmp_path / "whole")
    judge.scores = [5.0, 3.0, 4.0, 5.5, 6.0]
    turns: list[tuple[int, int, float, str]] = []
    with opened(config, tmp_path / "a") as run:  # stopped while the second one drives
        real, step = run.judging._take_the_wheel, run.collector.step

        def take(turn: int) -> None:
            real(turn)
            assert run.collector.length == 0, "an episode is driven by one alone"
            turns.append((turn, run.dreamer.updates, run.done(), run.collector.agent.version))

        def drive(*args: Any, **options: Any) -> bool:
            if len(turns) == 2 and run.collector.length == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*args, **options)

        monkeypatch.setattr(run.judging, "_take_the_wheel", take)
        run.collector.step = drive
        run.train()
        assert run.dreamer.updates < 90
    assert [turn for turn, *_ in turns] == [1, 2]
    assert 0.3 <= turns[0][2] < 0.65 <= turns[1][2] < 1 and turns[0][3] != turns[1][3]
    with opened(config, tmp_path / "a") as run:
        assert run.judging.handed_over == 2 and run.collector.agent.version == turns[1][3]
    again = train(config, tmp_path / "a")
    for part in ("learner", "streams", "replay", "episode"):
        assert again[part] == whole[part], part
    evals = told(tmp_path / "a", "eval")
    assert [(line["updates"], line.get("relearned", False)) for line in evals] == [
        (turns[0][1], False), (turns[0][1], True), (turns[1][1], True),
    ], "the run's own policy rests after the first"  # fmt: skip


@pytest.mark.parametrize(
    ("done", "turn"), [(0.0, 0), (0.39, 0), (0.4, 1), (0.59, 1), (0.6, 2), (0.8, 3), (0.99, 3), (1.0, 0), (1.2, 0)]
)
def test_turns_are_equally_long(done: float, turn: int) -> None:
    assert driver_due(handing_over(world_only_from=0.4, drivers=3), done) == turn
    assert driver_due(handing_over(world_only_from=1.0), done) == 0


def test_a_damaged_driver_is_replaced_by_another(tmp_path: Path, judge: Judge) -> None:
    judge.scores = list(SCORES)
    train(handing_over(), tmp_path)
    flip(tmp_path / "driver" / "agent.safetensors")
    judge.scores = [5.0, 3.0, 6.0, 6.5]
    with opened(handing_over(updates=130), tmp_path, heard := Told()) as run:
        assert not run.judging.handed_over and "who drove is lost" in heard.warnings[0]
        run.train()
        assert run.judging.handed_over and run.dreamer.updates == 130
    Agent.load(tmp_path / "driver")


def test_without_it_nobody_is_handed_anything(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0, 1.0, 2.0]
    train(handing_over(world_only_from=1.0), tmp_path)
    assert not (tmp_path / "driver").exists() and len(told(tmp_path, "eval")) == 1


def test_a_policy_that_cannot_learn_yet_is_tried_after_the_next_episode(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be no whole episode to dream of."""
    judge.scores = [5.0, *SCORES]
    real, times = judging.fresh_agent, []
    monkeypatch.setattr(judging, "fresh_agent", lambda *args: (times.append(1), real(*args) if times[1:] else None)[1])
    with opened(handing_over(), tmp_path) as run:
        run.train()
        assert run.judging.handed_over


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="--world-only-from needs a fresh policy that drives: give --relearn"):
        check(handing_over(relearn=0))
    with pytest.raises(UsageError, match=r"--world-only-from needs somebody who drives, .*: leave it at 1"):
        check(handing_over(train_every=0.0))
    with pytest.raises(UsageError, match=r"--world-only-from must be in \[0, 1\], not 1.5"):
        check(handing_over(world_only_from=1.5))
    with pytest.raises(UsageError, match="--drivers 2 take turns while only the world learns: give --world-only-from"):
        check(handing_over(world_only_from=1.0, drivers=2))
    with pytest.raises(UsageError, match=r"--stumbles 0\.5 are those of .*: give --world-only-from"):
        check(handing_over(world_only_from=1.0, stumbles=0.5))
    with pytest.raises(UsageError, match=r"--stumbles must be in \[0, 1\], not 2"):
        check(handing_over(stumbles=2.0))
    with pytest.raises(UsageError, match=r"--drivers must be .*, not 0"):
        check(handing_over(drivers=0))
    check(dataclasses.replace(handing_over(), world_only_from=0.0))
