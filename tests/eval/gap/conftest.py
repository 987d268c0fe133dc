"""Makes `gap_fakes` and `tiny` importable, and records the episodes that most tests start from, once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import gap_fakes

from worldmodel.eval.gap.episodes import episodes


@pytest.fixture(scope="session")
def lived():
    """Twelve episodes of the lane, driven by its good driver."""
    return episodes(gap_fakes.agent(), range(100, 112))


@pytest.fixture
def env():
    """The lane, wrapped for the agent."""
    made = gap_fakes.agent().make_env()
    yield made
    made.close()
