"""A run packages the starts of its agent's dreams: its own newest episodes, filtered by the weights it saves."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from run_helpers import Told, tiny

import worldmodel
from worldmodel.train.loop import Run


@pytest.mark.parametrize("eval_minutes", [0.0, 5.0], ids=["never judged", "judged"])
def test_a_runs_best_agent_can_be_dreamed_with(tmp_path: Path, eval_minutes: float) -> None:
    with Run(tiny(eval_minutes=eval_minutes), tmp_path / "run", Told()) as run:
        run.train()
        newest = run.collector.seed
    starts = worldmodel.load(str(tmp_path / "run")).starts
    assert starts is not None and 1 <= len(starts) <= 256 + 16
    assert starts.episode.max() <= newest and starts.episode.min() >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("worldmodel/Dream-v0", checkpoint=str(tmp_path / "run"), cont="ignore")
    env.action_space.seed(0)
    seen, info = env.reset(seed=0, options={"start": 0})
    assert info["start_episode"] == starts.episode[0] and seen.shape == (16, 16, 3)
    assert all(np.isfinite(env.step(env.action_space.sample())[1]) for _ in range(10))
