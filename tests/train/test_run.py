"""A run and its folder: nobody else's, described by itself, never learning from garbage, not stopped by trifles."""

from __future__ import annotations

import dataclasses
import io
import os
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import Told, content, digest, opened, tiny, train

from worldmodel import storage
from worldmodel.config import from_dict
from worldmodel.envs.toy import Corridor
from worldmodel.errors import NumericalError, UsageError
from worldmodel.train.loop import Run
from worldmodel.train.progress import Progress

pytestmark = pytest.mark.usefixtures("quick")


def test_seeds_differ_from_run_to_run(tmp_path: Path) -> None:
    a, b = (train(tiny(updates=1, seed=seed), tmp_path / str(seed)) for seed in (1, 2))
    assert a["learner"] != b["learner"] and a["replay"] != b["replay"]


class Lottery(Corridor):
    """Pays what the global generators give; so does many a user's environment."""

    def step(self, action: Any) -> Any:
        obs, _, *rest = super().step(action)
        return obs, random.random() + 10 * float(np.random.rand()) + 100 * float(torch.rand(())), *rest


def test_bug_a_seed_did_not_decide_what_environments_drew_from_the_global_generators(tmp_path: Path) -> None:
    gym.register("test/Lottery-v0", Lottery)
    try:
        runs = []
        for number, seed in enumerate((1, 1, 2)):
            random.seed(number)
            np.random.seed(number)
            torch.manual_seed(number)
            with Run(tiny("test/Lottery-v0", updates=3, seed=seed), tmp_path / str(number), Told()) as run:
                run.train()
                runs.append(content(run))
    finally:
        del gym.registry["test/Lottery-v0"]
    assert runs[0] == runs[1] and runs[0]["replay"]["reward"] != runs[2]["replay"]["reward"]


def test_the_largest_seed_works(tmp_path: Path) -> None:
    """numpy's global generator takes 32 bits only."""
    assert train(tiny(updates=1, seed=2**62), tmp_path)["counters"]["updates"] == 1


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


def test_bug_a_folder_that_cannot_be_made_was_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=rf"cannot lock {out}: .*choose a folder you may write to") as caught:
            train(tiny(), out)
        assert caught.value.exit_code == 74


def test_run_folder_tells_what_it_is(tmp_path: Path) -> None:
    train(tiny(updates=1), tmp_path)
    assert from_dict(storage.read_file(tmp_path / "config.json")) == tiny(updates=1)
    assert storage.read_file(tmp_path / "spaces.json")["observations"] == {"image": [16, 16, 3]}


# -- numbers that are none ---------------------------------------------------------------------------------------------


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


# -- what must not stop a training -------------------------------------------------------------------------------------


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


def test_time_left_is_told_as_soon_as_learning_has_a_pace(tmp_path: Path) -> None:
    """In a resumed session too, by the pace of that session alone."""

    class Heard(Told):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[tuple[int, float]] = []

        def update(self, status: dict[str, Any]) -> None:
            self.told.append((status["updates"], status["left"]))

    for updates, before in ((6, 0), (20, 6)):
        heard = Heard()
        train(tiny(updates=updates), tmp_path, heard)
        assert all(left == float("inf") for done, left in heard.told if done <= before)
        known = [left for done, left in heard.told if before + 1 < done < updates]
        assert known and all(0 < left < 60 for left in known)
        assert heard.told[-1] == (updates, 0.0)
