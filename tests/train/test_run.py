"""A run goes on where it stopped, to the last bit; refuses what cannot work; and never learns from garbage."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import CORRIDOR, Told, content, digest, metrics, opened, streams, tiny, train

from worldmodel import load, storage
from worldmodel.config import TRACKS, Config, EnvConfig, from_dict, to_dict
from worldmodel.envs.toy import Corridor
from worldmodel.errors import NumericalError, UsageError, WorldModelError
from worldmodel.eval.real import Evaluation
from worldmodel.train import loop
from worldmodel.train.check import INTERVALS, check
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.loop import Run
from worldmodel.train.progress import Progress


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of every update are logged."""
    monkeypatch.setattr(loop, "LOG_SECONDS", -1.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on measuring the pace; tests/train/test_schedule.py does that."""
    monkeypatch.setattr(loop, "measure", lambda *_: (0.01, 0.001))


# -- going on ---------------------------------------------------------------------------------------------------------


def compare(config: Config, folder: Path) -> Told:
    """2N updates at once = N, stop, another Run object, N more: everything a run consists of, and its metrics."""
    whole = train(config, folder / "whole")
    halfway = train(dataclasses.replace(config, updates=config.updates // 2), folder / "halves")
    assert halfway["episode"]["length"] > 0, "the stop must fall into an episode"
    assert halfway["learner"] != whole["learner"] and halfway["streams"] != whole["streams"]
    told = Told()
    halves = train(config, folder / "halves", told)
    for part in whole:
        assert halves[part] == whole[part], part
    lines = metrics(folder / "whole")
    assert metrics(folder / "halves") == lines
    assert [line["updates"] for line in lines if line["kind"] == "train"] == list(range(1, config.updates + 1))
    assert told.warnings == [] and f"after {config.updates // 2} updates" in told.text
    return told


@pytest.mark.parametrize("env", [CORRIDOR, "test/CorridorBoth-v0"])
def test_resume_is_bit_exact(tmp_path: Path, every_update: None, env: str) -> None:
    """Discrete and from images; continuous and from images and vectors. Both halves end and begin episodes."""
    compare(tiny(env, updates=24), tmp_path)
    assert len({line["seed"] for line in metrics(tmp_path / "whole") if line["kind"] == "episode"}) > 1


def test_resume_is_bit_exact_in_the_middle_of_a_drive(tmp_path: Path, every_update: None) -> None:
    """CarRacing's physics cannot be stored: the running episode is driven again from its seed and actions."""
    car = EnvConfig(id="worldmodel/CarRacing-v3", action_repeat=4, image_size=16)
    config = dataclasses.replace(tiny(updates=12, prefill=20, pretrain=2), env=car)
    compare(config, tmp_path)


def test_everything_of_a_resumed_run_is_of_the_run(tmp_path: Path) -> None:
    """Not only at the end: directly after resuming it is what it was directly before stopping."""
    config = tiny("test/CorridorBoth-v0", updates=9)
    before = train(config, tmp_path)
    with opened(config, tmp_path) as run:
        assert content(run) == before
        assert run.env.unwrapped.steps == run.collector.length > 0
        assert run.elapsed > run.seconds > 0


def test_seeds_differ_from_run_to_run(tmp_path: Path) -> None:
    a, b = (train(tiny(updates=1, seed=seed), tmp_path / str(seed)) for seed in (1, 2))
    assert a["learner"] != b["learner"] and a["replay"] != b["replay"]


def test_a_larger_budget_goes_on_and_a_used_one_says_so(tmp_path: Path) -> None:
    train(tiny(updates=6), tmp_path)
    saved = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    told = Told()
    with opened(tiny(updates=6), tmp_path, told) as run:
        result = run.train()
    assert result["updates"] == 6 and result["finished"] and result["exit_code"] == 0
    assert "budget of this run is used up: raise --minutes, --frames or --updates" in told.warnings[0]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == saved, "nothing was done, nothing is saved"
    assert train(tiny(updates=9), tmp_path)["counters"]["updates"] == 9


def test_budget_of_frames(tmp_path: Path) -> None:
    with opened(tiny(updates=0, frames=50), tmp_path) as run:
        result = run.train()
    assert result["frames"] == 50 and result["finished"]


def test_budget_of_minutes_counts_all_sessions(tmp_path: Path) -> None:
    config = tiny(updates=0, minutes=0.006, prefill=100_000)
    with opened(config, tmp_path) as run:
        first = run.train()
        assert run.done() >= 1 and 0 < first["frames"] < 100_000
    with opened(dataclasses.replace(config, minutes=60.0), tmp_path) as run:
        assert run.elapsed > run.seconds >= 0.006 * 60
        assert 1e-4 < run.done() < 1, "the first session counts"


def test_a_budget_that_ends_before_learning_begins_is_told(tmp_path: Path) -> None:
    told = Told()
    train(tiny(updates=0, frames=30), tmp_path, told)
    assert told.warnings == ["nothing will be learnt: --frames ends the run within its --prefill"]


def test_another_configuration_is_refused_with_a_readable_list(tmp_path: Path) -> None:
    before = train(tiny(updates=3), tmp_path)
    other = dataclasses.replace(tiny(updates=3, seed=5), replay=dataclasses.replace(tiny().replay, batch=6))
    with pytest.raises(UsageError, match=r"(?s)another configuration:\n.*replay\.batch: 4 -> 6\n.*seed: 1 -> 5\n"):
        train(other, tmp_path)
    assert train(tiny(updates=3), tmp_path) == before, "the refused attempt changed nothing"


def test_other_spaces_are_refused(tmp_path: Path) -> None:
    """The same id may be another environment after an update of its package."""
    gym.register("test/Changing-v0", Corridor, kwargs={"length": 8, "observation": "vector"})
    try:
        train(tiny("test/Changing-v0", updates=1), tmp_path)
        gym.registry["test/Changing-v0"].kwargs["length"] = 9
        with pytest.raises(UsageError, match=r"Changing-v0 gives .*\(9,\).* now, but this run began with .*\(8,\)"):
            train(tiny("test/Changing-v0", updates=2), tmp_path)
    finally:
        del gym.registry["test/Changing-v0"]


def test_auto_settings_are_decided_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "fast_precision", lambda device: "float32")
    auto = tiny(updates=1, precision="auto")
    train(auto, tmp_path)
    monkeypatch.setattr(loop, "fast_precision", lambda device: "bfloat16")
    train(auto, tmp_path)
    assert storage.read_file(tmp_path / "config.json")["precision"] == "float32"


def test_one_trainer_a_folder(tmp_path: Path) -> None:
    with opened(tiny(updates=1), tmp_path) as run:
        with pytest.raises(UsageError, match=rf"in use by process {os.getpid()} on .*another --out"):
            Run(tiny(updates=1), tmp_path, Told())
        run.train()  # the refused one took nothing away
    assert train(tiny(updates=2), tmp_path)["counters"]["updates"] == 2, "closing lets go"


def test_a_failed_start_lets_go_of_the_folder(tmp_path: Path) -> None:
    train(tiny(updates=1), tmp_path)
    with pytest.raises(UsageError):
        train(tiny(updates=1, seed=7), tmp_path)
    assert not (tmp_path / "lock.json").exists()


def test_run_folder_tells_what_it_is(tmp_path: Path) -> None:
    train(tiny(updates=1), tmp_path)
    assert from_dict(storage.read_file(tmp_path / "config.json")) == tiny(updates=1)
    assert storage.read_file(tmp_path / "spaces.json")["observations"] == {"image": [16, 16, 3]}


# -- judging ----------------------------------------------------------------------------------------------------------


def test_judging_disturbs_nothing(tmp_path: Path) -> None:
    """Evaluations happen by the clock, so they must leave every stream, episode and memory where they were."""
    with opened(tiny("test/Gambler-v0", prefill=120), tmp_path) as run:
        run.train()
        before = content(run)
        run._judge()
        after = content(run)
        assert after["counters"].pop("best")["score"] is not None and before["counters"].pop("best") is None
        assert after == before
        assert streams(run) == before["streams"]
    assert len(list((tmp_path / "videos").glob("openloop-*.mp4"))) == 1
    kinds = [line["kind"] for line in metrics(tmp_path)]
    assert "eval" in kinds and "openloop" in kinds


class Judge:
    """In place of `evaluate`: gives scores one after another, and notes what was asked."""

    def __init__(self, real: Callable[..., Evaluation], scores: list[float]):
        self.real, self.scores, self.seeds = real, scores, []

    def __call__(self, agent: Any, seeds: range) -> Evaluation:
        self.seeds += list(seeds)
        result = self.real(agent, seeds)
        episodes = [dataclasses.replace(episode, return_=self.scores[0]) for episode in result.episodes]
        self.scores = self.scores[1:]
        return dataclasses.replace(result, episodes=tuple(episodes))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge(loop.evaluate, [])
    monkeypatch.setattr(loop, "evaluate", judge)
    monkeypatch.setattr(loop, "open_loop_video", lambda *_: None)
    return judge


def test_best_agent_is_kept_and_comes_from_the_selection_tracks(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [5.0, 3.0, 7.0]
    with opened(tiny(updates=3), tmp_path) as run:
        run.train()
        versions = []
        for _ in range(3):
            run._judge()
            versions.append(storage.read_folder(tmp_path / "best")["card.json"]["selection"]["mean"])
    assert versions == [5.0, 5.0, 7.0]
    assert set(judge.seeds) == {TRACKS["select"], TRACKS["select"] + 1}


def test_bug_best_agent_saved_after_the_last_checkpoint_was_overwritten_by_a_worse_one(
    tmp_path: Path, judge: Judge
) -> None:
    """Killed between judging and saving, the checkpoint knows nothing of RUN/best."""
    judge.scores = [9.0, 4.0]
    with opened(tiny(updates=3), tmp_path) as run:
        run.train()
        run._judge()  # and no checkpoint after it
    with opened(tiny(updates=4), tmp_path) as run:
        assert run.best["score"] == 9.0
        run.train()
        run._judge()
        assert run.best["score"] == 9.0
    assert storage.read_folder(tmp_path / "best")["card.json"]["selection"]["mean"] == 9.0


def test_a_run_that_is_never_judged_leaves_its_last_agent(tmp_path: Path) -> None:
    versions = []
    for updates in (3, 5):
        with opened(tiny(updates=updates), tmp_path) as run:
            run.train()
            assert run.best is None
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
    def fail(*_: Any) -> None:
        raise WorldModelError("the environment failed at step 3 of the episode with seed 1000000")

    monkeypatch.setattr(loop, "evaluate", fail)
    with pytest.raises(WorldModelError, match="the environment failed"):
        train(tiny(updates=3, eval_minutes=99.0), tmp_path)
    with opened(tiny(updates=3), tmp_path) as run:
        assert run.dreamer.updates == 3


def test_bug_a_film_that_fails_stopped_the_training(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no ffmpeg here")

    monkeypatch.setattr(loop, "open_loop_video", fail)
    judge.scores, told = [1.0], Told()
    with opened(tiny(updates=3, eval_minutes=99.0), tmp_path, told) as run:
        assert run.train()["finished"]
    assert "no film of the dreams" in told.warnings[0] and "no ffmpeg here" in told.warnings[0]


# -- an environment that does not repeat itself -----------------------------------------------------------------------


class Moody(Corridor):
    """The cost of a step, the place where it begins, or the last cell, change from one session to the next."""

    session: dict[str, Any] = {}

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        _, info = super().reset(**kwargs)
        self.place = self.session.get("place", 0)
        self.cost = self.session.get("cost", 0.02)
        self.limit = self.session.get("limit", 50)
        return self._observe(), info


@pytest.fixture
def moody() -> Any:
    gym.register("test/Moody-v0", Moody, kwargs={"length": 16})
    Moody.session = {}
    yield Moody
    Moody.session = {}
    del gym.registry["test/Moody-v0"]


@pytest.mark.parametrize("change", [{"cost": 0.03}, {"place": 3}, {"limit": 2}], ids=lambda c: next(iter(c)))
def test_a_running_episode_that_does_not_repeat_is_cut_off(
    tmp_path: Path, moody: type[Moody], change: dict[str, Any]
) -> None:
    """By its rewards, its observations or an end that was none: the run says so, and goes on with a new episode."""
    config = tiny("test/Moody-v0", updates=10)
    stopped = train(config, tmp_path)["episode"]
    assert stopped["length"] > 2
    moody.session = change
    told = Told()
    with opened(tiny("test/Moody-v0", updates=14), tmp_path, told) as run:
        assert told.warnings == ["the environment did not repeat the running episode: it was cut off, a new one begins"]
        collector, total = run.collector, run.replay.total
        assert collector.episode == stopped["episode"] + 1 and collector.start == total
        assert (collector.length, collector.actions) == (0, []) and collector.arrival["is_first"]
        run.train()
        rows = run.replay.rows(stopped["start"], run.replay.total, ["is_first", "is_terminal"])
    cut = total - stopped["start"]
    assert rows["is_first"][0] and not rows["is_first"][1:cut].any() and rows["is_first"][cut]
    assert not rows["is_terminal"][:cut].any(), "being cut off is not an end"


def test_bug_a_run_saved_soon_after_its_episode_was_cut_off_could_not_be_resumed(
    tmp_path: Path, moody: type[Moody]
) -> None:
    """The steps of the episode that was cut off were in no file: neither of the running episode nor of those before."""
    train(tiny("test/Moody-v0", updates=10), tmp_path)
    moody.session = {"cost": 0.03}
    with opened(tiny("test/Moody-v0", updates=11), tmp_path) as run:
        run._save()  # before the new episode has a step
    cut = train(tiny("test/Moody-v0", updates=11), tmp_path)
    told = Told()
    assert train(tiny("test/Moody-v0", updates=11), tmp_path, told) == cut
    assert "used up" in told.warnings[0]


# -- numbers that are none --------------------------------------------------------------------------------------------


def poison(run: Run, what: str) -> None:
    """Makes something of a run NaN."""
    if what in ("reward", "observation"):
        inner = run.env.unwrapped
        real = inner.step

        def step(action: Any) -> Any:
            obs, reward, *rest = real(action)
            return (obs, float("nan"), *rest) if what == "reward" else (obs * np.float32("nan"), reward, *rest)

        inner.step = step
    elif what == "gradient":
        run.dreamer.agent.world.prior.requires_grad_(True)
        next(run.dreamer.agent.world.prior.parameters()).register_hook(lambda g: g * float("nan"))
    else:
        module = {"world": run.dreamer.agent.world.reward, "policy": run.dreamer.agent.policy.actor}[what]
        with torch.no_grad():
            next(module.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("world", r"loss/reward"),
        ("policy", r"policy/entropy|loss/actor"),
        ("gradient", r"gradient of world\.prior\."),
        ("reward", r"the environment paid nan at step \d+ of episode seed \d+"),
        ("observation", r"the environment shows .* as 'vector' at step \d+ of episode seed \d+"),
    ],
)
def test_nan_stops_the_run_by_name_and_spares_the_checkpoint(tmp_path: Path, what: str, named: str) -> None:
    config = tiny("test/CorridorVector-v0", updates=6)
    before = train(config, tmp_path)
    with pytest.raises(NumericalError, match=named) as caught:
        with opened(dataclasses.replace(config, updates=12), tmp_path) as run:
            poison(run, what)
            run.train()
    assert caught.value.exit_code == 5
    with opened(config, tmp_path) as run:
        assert content(run) == before
        assert all(value.isfinite().all() for value in run.dreamer.tensors().values())


def test_a_refused_update_leaves_weights_and_moments_alone(tmp_path: Path) -> None:
    with opened(tiny(updates=3), tmp_path) as run:
        run.train()
        names = [n for n in run.dreamer.tensors() if ".scale." not in n]
        before = {name: digest(run.dreamer.tensors()[name]) for name in names}
        run.replay.data["reward"][:] = np.nan
        batch, _ = run.replay.sample(4)
        with pytest.raises(NumericalError, match="loss/reward not finite: look at"):
            run.dreamer.update(batch)
        assert {name: digest(run.dreamer.tensors()[name]) for name in names} == before
        assert run.dreamer.updates == 3


# -- what must not stop a training ------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "tensorboard").write_text("in the way")
    told = Told()
    quiet = train(tiny(updates=6), tmp_path, told)
    assert len(told.warnings) == 2 and all("training goes on without it" in text for text in told.warnings)
    assert quiet["learner"] == train(tiny(updates=6), tmp_path.with_name("other"))["learner"]


def test_bug_an_error_left_the_terminal_without_a_cursor(tmp_path: Path) -> None:
    """The live line must end before the message: rich hides the cursor while it runs."""
    terminal = io.StringIO()
    progress = Progress(Console(file=terminal, force_terminal=True, width=100))
    with pytest.raises(NumericalError):
        with Run(tiny("test/CorridorVector-v0", updates=6), tmp_path, progress) as run:
            poison(run, "world")
            run.train()
    assert progress.live is None
    shown = terminal.getvalue()
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "shown again after it was hidden"


# -- what cannot work -------------------------------------------------------------------------------------------------


def set_field(config: Config, name: str, value: Any) -> Config:
    group, _, field = name.rpartition(".")
    if not group:
        return dataclasses.replace(config, **{field: value})
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{field: value})})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("minutes", -1.0, "--minutes must be at least 0, not -1.0"),
        ("minutes", float("inf"), "--minutes must be a finite number, not inf"),
        ("updates", 0, "no budget: give --minutes, --frames or --updates"),
        ("updates", -5, "--updates must be at least 0, not -5"),
        ("frames", -1, "--frames must be at least 0, not -1"),
        ("seed", -1, r"--seed must be in \[0, 9e18\), not -1"),
        ("prefill", 8, "--prefill 8 is shorter than a sequence of 8 \\+ 1 steps"),
        ("train_every", 0.0, "--train-every must be more than 0, not 0.0"),
        ("train_every", float("nan"), "--train-every must be a finite number, not nan"),
        ("eval_episodes", 0, "--eval-episodes must be at least 1, not 0"),
        ("save_minutes", -1.0, "--save-minutes must be at least 0"),
        ("replay.batch", 0, "--replay.batch must be at least 1, not 0"),
        ("replay.length", 0, "--replay.length must be at least 1, not 0"),
        ("policy.horizon", 0, "--policy.horizon must be at least 1, not 0"),
        ("policy.discount", 1.0, r"--policy.discount must be in \(0, 1\), not 1.0"),
        ("policy.min_std", 2.0, "--policy.min-std 2.0 must not be above --policy.max-std 1.0"),
        ("world.bins", 254, "--world.bins must be odd"),
        ("world.deter", 33, "do not divide into 8 blocks"),
        ("optim.beta1", 1.0, r"--optim.beta1 must be in \[0, 1\), not 1.0"),
        ("optim.world_lr", -1e-4, "--optim.world-lr must be more than 0, not -0.0001"),
        ("replay.gigabytes", 1e-6, "--replay.gigabytes 1e-06 holds 1 steps: give at least"),
        ("env.id", "worldmodel/Corrido-v0", "did you mean worldmodel/Corridor-v0"),
        ("env.image_size", 17, "--env.image-size must be a multiple of 16"),
        ("device", "gpu", "--device gpu: torch cannot use it here; use cpu, cuda"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with opened(set_field(tiny(), name, value), tmp_path / "run"):
            pass
    assert not (tmp_path / "run" / "lock.json").exists()


def test_every_number_of_a_configuration_has_limits() -> None:
    """A new field cannot be forgotten, and every default and preset lies within."""
    from worldmodel.config import PRESETS

    def numbers(values: dict[str, Any], prefix: str = "") -> set[str]:
        out: set[str] = set()
        for key, value in values.items():
            if isinstance(value, dict):
                out |= numbers(value, f"{prefix}{key}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                out.add(prefix + key)
        return out

    named = [name for names in INTERVALS.values() for name in names.split()]
    assert len(named) == len(set(named)) and set(named) == numbers(to_dict(Config()))
    for preset in PRESETS.values():
        check(preset)


def test_bug_a_folder_that_cannot_be_made_was_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=rf"cannot lock {out}: .*choose a folder you may write to") as caught:
            train(tiny(), out)
        assert caught.value.exit_code == 74


def test_bug_a_run_that_lost_its_memories_stopped_instead_of_gathering_new_ones(tmp_path: Path) -> None:
    train(tiny(updates=6), tmp_path)
    with opened(tiny(updates=10), tmp_path) as run:
        run.replay.clear()
        run.replay.restore(run.collector.start, {name: v[:0] for name, v in run.replay.rows(0, 1).items()})
        run.train()
        assert run.dreamer.updates == 10 and len(run.replay) >= run.replay.length + 1


def test_nothing_saved_begins_anew(tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run leaves a folder that any configuration may take."""
    with opened(tiny(updates=3), tmp_path):
        pass
    assert Checkpoints(tmp_path).latest() is None
    assert train(tiny(updates=2, seed=4), tmp_path)["counters"]["updates"] == 2
