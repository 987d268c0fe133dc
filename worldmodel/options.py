"""The options of every command, as dataclasses that `tyro` turns into flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from worldmodel.config import Config


@dataclass
class Train:
    """Learn a world model from real episodes, and a policy inside its dreams. An existing run is resumed.

    PRESET, before the options, is carracing (the default), carracing-fast (20 minutes), small (any task), debug, a
    size of DreamerV3 (1m, 12m, 25m ... 200m), or world-models, world-models-cma, world-models-2018: the other world,
    with another policy, in the original's regime.
    """

    out: Path
    """The run's folder."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    json: bool = False
    """Print the result as one JSON object, the last line of standard output."""


@dataclass
class Eval:
    """Real return of an agent: undiscounted, unshaped, on tracks that it neither trained on nor was chosen by."""

    run: tyro.conf.Positional[Path]
    """A run folder (its best agent) or an agent folder."""
    episodes: int = 100
    """Episodes, one track each."""
    seed: int | None = None
    """Seed of the first track; the report range when left out."""
    sample: bool = False
    """Sample actions, as in training, instead of taking the policy's mode."""
    env: str | None = None
    """Judge on this environment id instead, e.g. CarRacing-v3: gymnasium's own renderer."""
    workers: int = 0
    """Processes; 0 = one for each core."""
    out: Path | None = None
    """Also write the result, with every episode, to this JSON file."""
    films: int = 0
    """Also film this many of the worst episodes, driven once more: films/SEED.mp4 beside --out, or here."""
    json: bool = False
    """Print the result as one JSON object, the last line of standard output."""


@dataclass
class Dream:
    """Film decoded dreams: truth, reconstruction, open-loop dream and error under the same actions."""

    run: tyro.conf.Positional[Path]
    """A run folder (its best agent) or an agent folder."""
    out: Path = Path("dreams")
    """Folder for the film and the strip."""
    seed: int | None = None
    """Seed of the track; the first of the report range when left out."""
    start: int = 40
    """Agent step of the episode at which the window begins."""
    context: int = 10
    """Agent steps seen before the dream begins."""
    horizon: int = 50
    """Agent steps dreamed."""
    format: Literal["mp4", "gif"] = "mp4"
    """Kind of the film."""
    json: bool = False
    """Print what was written and measured as one JSON object, the last line of standard output."""


@dataclass
class Gap:
    """How much of the dream is true: gap.json and gap.html, with a verdict. Reality is forked at real moments and the
    same actions are taken there, so dream and truth are compared exactly."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """A run folder (its best agent) or an agent folder. Several of them, or a pattern in quotes, are ranked: does the
    dream order them as reality does?"""
    compare: bool = False
    """Measure nothing: compare the reports of two RUNs, B against A, track by track."""
    quick: bool = False
    """Screening: 20 tracks, 16 starts, 50 imagined steps; otherwise 100, 64 and 200."""
    out: Path | None = None
    """Folder for gap.json, gap.html and the cached real episodes; RUN/gap when left out, ./gap for a released agent. Of
    several RUNs only the ranking goes there, ./gap when left out."""
    fail_if: tuple[
        Literal["FAITHFUL", "OPTIMISTIC", "PESSIMISTIC", "EXPLOITED", "INCONCLUSIVE", "REGRESSION"], ...
    ] = ()
    """Verdicts with which the command leaves with exit code 3, for use in CI; REGRESSION is for --compare."""
    sample: bool = False
    """Sample actions, in dream and reality, instead of taking the policy's mode."""
    episodes: int | None = None
    """Real episodes, one held-out track each."""
    starts: int | None = None
    """Forks of reality."""
    seed: int | None = None
    """Seed of the first track; the report range when left out."""
    workers: int = 0
    """Processes that drive real episodes; 0 = one for each core."""
    json: bool = False
    """Print the verdict and its numbers as one JSON object, the last line of standard output."""
