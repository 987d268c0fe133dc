"""Dreamer trains the VAE and MDN-RNN with the loop that trains the RSSM; nothing there knows which world it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from run_helpers import TINY, metrics, tiny, train

from worldmodel.config import Config, WorldModelsConfig

pytestmark = pytest.mark.usefixtures("quick", "every_update")

SMALL = WorldModelsConfig(latent=6, depth=4, tokens=16, memory=16, mixtures=3, units=16, bins=41)


def second(env: str, **changes: object) -> Config:
    world = dataclasses.replace(TINY.world, kind="vae-mdn-rnn")
    return dataclasses.replace(tiny(env, world_models=SMALL, **changes), world=world)


@pytest.mark.parametrize("env", ["worldmodel/Corridor-v0", "test/CorridorVector-v0", "test/CorridorBoth-v0"])
def test_it_trains_on_images_and_vectors(tmp_path: Path, env: str) -> None:
    done = train(second(env, updates=12), tmp_path)
    assert done["counters"]["updates"] == 12
    last = metrics(tmp_path)[-1]
    assert {"loss/mixture", "loss/kl", "loss/reward", "loss/actor", "world/dead_dimensions"} <= set(last)


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """Its memory, c too, is part of the replay and of the checkpoint."""
    config = second("worldmodel/Corridor-v0", updates=12)
    whole = train(config, tmp_path / "whole")
    train(dataclasses.replace(config, updates=6), tmp_path / "parts")
    parts = train(config, tmp_path / "parts")
    assert parts["learner"] == whole["learner"] and parts["replay"] == whole["replay"]
