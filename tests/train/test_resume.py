"""A run goes on where it stopped, to the last bit, or says why it cannot."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from run_helpers import CORRIDOR, Told, content, metrics, opened, tiny, train

from worldmodel import storage
from worldmodel.config import Config, EnvConfig
from worldmodel.envs.toy import Corridor
from worldmodel.errors import UsageError
from worldmodel.train import loop
from worldmodel.train.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("quick", "small_shards")


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


def test_resume_is_bit_exact_in_an_endless_episode(tmp_path: Path, every_update: None) -> None:
    compare(tiny("test/Treadmill-v0", updates=24), tmp_path)


def test_resume_is_bit_exact_after_steps_were_forgotten(tmp_path: Path, every_update: None) -> None:
    """What the memory no longer holds is in no file, and changes nothing."""
    config = tiny(updates=60)
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, gigabytes=7e-5))
    compare(config, tmp_path)
    files = Checkpoints(tmp_path / "whole").latest()[1]
    oldest = files["run.json"]["total"] - len(files["states.npy"])
    assert files["run.json"]["shards"][0]["start"] == oldest > 0, "saved once, at the end: some were forgotten"


def test_bug_an_endless_episode_was_written_again_with_every_checkpoint(tmp_path: Path) -> None:
    """What a checkpoint holds of it does not grow, but for the list of shards."""
    sizes, shards = [], []
    for updates in (10, 60, 110):
        train(tiny("test/Treadmill-v0", updates=updates), tmp_path)
        files = Checkpoints(tmp_path).latest()[1]
        shards = files["run.json"].pop("shards")
        total = files["run.json"]["total"]
        assert [shard["start"] for shard in shards] == list(range(0, total - 19, 20)) and shards[-1]["stop"] <= total
        assert len(files["running.safetensors"]["reward"]) == total % 20
        sizes.append(len(json.dumps(files["run.json"])))
    assert total > 200 and max(sizes) - min(sizes) < 100
    assert sorted(path.name for path in (tmp_path / "replay").iterdir()) == [shard["file"] for shard in shards]


def test_bug_an_episode_longer_than_the_memory_was_blamed_on_the_environment(tmp_path: Path) -> None:
    config = tiny("test/Treadmill-v0", updates=60)
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, gigabytes=7e-5))
    with opened(config, tmp_path) as run:
        run.train()
        kept, total = run.replay.capacity, run.replay.total
        assert kept < total == run.collector.length
    told = Told()
    with opened(dataclasses.replace(config, updates=70), tmp_path, told) as run:
        assert told.warnings == [
            f"only the last {kept} of the running episode's {total} steps are remembered, so it cannot be driven "
            "again: it was cut off, a new one begins"
        ]
        assert run.collector.episode == 1 and run.collector.start == total and run.collector.arrival["is_first"]
        assert run.train()["updates"] == 70


def test_everything_of_a_resumed_run_is_of_the_run(tmp_path: Path) -> None:
    """Not only at the end: directly after resuming it is what it was directly before stopping."""
    config = tiny("test/CorridorBoth-v0", updates=9)
    before = train(config, tmp_path)
    with opened(config, tmp_path) as run:
        assert content(run) == before
        assert run.env.unwrapped.steps == run.collector.length > 0
        assert run.elapsed > run.seconds > 0


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


def test_nothing_saved_begins_anew(tmp_path: Path) -> None:
    """Killed before its first checkpoint, a run leaves a folder that any configuration may take."""
    with opened(tiny(updates=3), tmp_path):
        pass
    assert Checkpoints(tmp_path).latest() is None
    assert train(tiny(updates=2, seed=4), tmp_path)["counters"]["updates"] == 2


def test_bug_a_run_that_lost_its_memories_stopped_instead_of_gathering_new_ones(tmp_path: Path) -> None:
    train(tiny(updates=6), tmp_path)
    with opened(tiny(updates=10), tmp_path) as run:
        run.replay.clear()
        run.replay.restore(run.collector.start, {name: v[:0] for name, v in run.replay.rows(0, 1).items()})
        run.train()
        assert run.dreamer.updates == 10 and len(run.replay) >= run.replay.length + 1


# -- an environment that does not repeat itself ------------------------------------------------------------------------


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
        assert collector.length == 0 and collector.arrival["is_first"]
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


def test_checkpoints_with_one_shard_an_episode_can_be_resumed(tmp_path: Path) -> None:
    """As they were written at first: with the running episode in the checkpoint, its actions in run.json."""
    config = tiny(updates=12)
    whole = train(dataclasses.replace(config, updates=20), tmp_path / "whole")
    with opened(config, tmp_path / "old") as run:
        run.train()
        start, total = run.collector.start, run.replay.total
        rows = {name: torch.from_numpy(values) for name, values in run.replay.rows(start, total).items()}
        earlier = {name: torch.from_numpy(values) for name, values in run.replay.rows(0, start).items()}
        path, files = run.checkpoints.latest()
    digest = storage.write_file(tmp_path / "old" / "replay" / "steps-old.safetensors", earlier)
    del files["run.json"]["judged"]
    files["run.json"]["collector"]["actions"] = [0] * (total - start)
    files["run.json"]["shards"] = [{"file": "steps-old.safetensors", "start": 0, "stop": start, "sha256": digest}]
    storage.write_folder(path, files | {"running.safetensors": rows})
    told = Told()
    halves = train(dataclasses.replace(config, updates=20), tmp_path / "old", told)
    assert told.warnings == []
    assert halves["counters"].pop("shards")[0] == start and whole["counters"].pop("shards")[0] == 20
    assert halves == whole
