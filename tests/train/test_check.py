"""Configurations that cannot work are refused at once, by the name of the flag."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from run_helpers import opened, tiny

from worldmodel.config import Config, to_dict
from worldmodel.errors import UsageError
from worldmodel.train.check import INTERVALS, check

pytestmark = pytest.mark.usefixtures("quick")


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
        ("train_every", -1.0, "--train-every must be at least 0, not -1.0"),
        ("train_every", float("nan"), "--train-every must be a finite number, not nan"),
        ("eval_episodes", 0, "--eval-episodes must be at least 1, not 0"),
        ("save_minutes", -1.0, "--save-minutes must be at least 0"),
        ("replay.batch", 0, "--replay.batch must be at least 1, not 0"),
        ("replay.length", 0, "--replay.length must be at least 1, not 0"),
        ("policy.horizon", 0, "--policy.horizon must be at least 1, not 0"),
        ("policy.discount", 1.0, r"--policy.discount must be in \(0, 1\), not 1.0"),
        ("policy.noise_correlation", 1.0, r"--policy.noise-correlation must be in \[0, 1\), not 1.0"),
        ("replay.newest", 1500, "--replay.newest 1500 limits what --replay.recent draws from: give that share as well"),
        ("replay.newest", -1, "--replay.newest must be at least 0, not -1"),
        ("policy.min_std", 2.0, "--policy.min-std 2.0 must not be above --policy.max-std 1.0"),
        ("policy.max_scale", 0.5, "--policy.max-scale 0.5: .* give 1 or more, or 0"),
        ("world.bins", 254, "--world.bins must be odd"),
        ("world.deter", 33, "do not divide into 8 blocks"),
        ("optim.beta1", 1.0, r"--optim.beta1 must be in \[0, 1\), not 1.0"),
        ("optim.decay", 1.5, r"--optim.decay must be in \[0, 1\], not 1.5"),
        ("optim.world_decay", -0.5, r"--optim.world-decay must be in \[0, 1\], not -0.5"),
        ("optim.world_weight_decay", -1.0, "--optim.world-weight-decay must be at least 0, not -1.0"),
        ("optim.world_weight_decay", 1e4, "--optim.world-weight-decay 10000.0 times .*: give less than"),
        ("optim.final", -0.1, r"--optim.final must be in \[0, 1\], not -0.1"),
        ("optim.world_lr", -1e-4, "--optim.world-lr must be more than 0, not -0.0001"),
        ("replay.gigabytes", 1e-6, "--replay.gigabytes 1e-06 holds 1 steps: give at least"),
        ("env.id", "worldmodel/Corrido-v0", "did you mean worldmodel/Corridor-v0"),
        ("env.image_size", 17, "--env.image-size must be a multiple of 16"),
        ("evolution.population", 2, "--evolution.population must be at least 4, not 2"),
        ("evolution.sigma", 0.0, "--evolution.sigma must be more than 0, not 0.0"),
        ("policy.kind", "cma", "--policy.kind must be actor-critic or evolution, not cma"),
        ("device", "gpu", "--device gpu: torch cannot use it here; use cpu, cuda"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with opened(set_field(tiny(), name, value), tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays_when_a_run_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device gpu"):
        with opened(set_field(tiny(), "device", "gpu"), tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_entropy_bonus_cannot_move_away_from_nothing() -> None:
    config = set_field(set_field(tiny(), "policy.entropy", 0.0), "policy.final_entropy", 1e-4)
    with pytest.raises(UsageError, match="final-entropy is approached from --policy"):
        check(config)


def test_a_frozen_regime_needs_a_budget_that_ends_it(tmp_path: Path) -> None:
    frozen = dataclasses.replace(tiny(updates=0, frames=1000), train_every=0.0)
    with pytest.raises(UsageError, match=r"--train-every 0 collects nothing .* give --minutes or --updates as well"):
        check(frozen)
    check(dataclasses.replace(frozen, minutes=1.0))


def test_evolution_has_no_critic_that_replay_could_teach() -> None:
    config = set_field(set_field(tiny(), "policy.kind", "evolution"), "policy.replay_value", 0.3)
    with pytest.raises(UsageError, match=r"--policy.replay-value 0.3 teaches a critic, and --policy.kind evolution"):
        check(config)


def test_what_came_after_teaches_nothing_without_a_weight() -> None:
    config = set_field(tiny(), "replay.after", 20)
    with pytest.raises(UsageError, match=r"--replay.after 20 tells the critic .* give --policy.replay-value"):
        check(config)
    check(set_field(config, "policy.replay_value", 0.3))


@pytest.mark.parametrize(("name", "value"), [("dynamics_from", 0.2), ("dynamics_starts", 128), ("dynamics_rate", 0.3)])
def test_when_and_where_dynamics_teach_is_of_that_gradient_alone(name: str, value: float) -> None:
    config = set_field(tiny(), f"policy.{name}", value)
    with pytest.raises(UsageError, match=r"are of --policy.gradient dynamics: give that"):
        check(config)
    check(set_field(config, "policy.gradient", "dynamics"))


def test_every_number_of_a_configuration_has_limits() -> None:
    """A new field cannot be forgotten, and every default and preset lies within."""
    from worldmodel.presets import PRESETS

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
