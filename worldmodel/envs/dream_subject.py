"""What is dreamed, and how: the options of dreams, and the world, actions and starts behind a checkpoint."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import worldmodel
from worldmodel.envs.spaces import Spaces
from worldmodel.envs.starts import Starts, collect_starts
from worldmodel.errors import UsageError


@dataclass(frozen=True)
class DreamOptions:
    """How to dream. Raises UsageError, naming the option, for a value that makes no sense."""

    obs: Literal["pixels", "latent", "both"] = "pixels"
    """`pixels`: the decoded picture, uint8 (H, W, C); `latent`: the features policies see, float32 (F,); `both`: a Dict
    of both."""
    horizon: int = 50
    """Imagined steps after which a dream is truncated, at least 2; as far as our open-loop films look."""
    temperature: float = 1.0
    """Of the sampled latents: below 1 the likelier futures, above 1 the unlikelier ones too."""
    cont: Literal["sample", "threshold", "ignore"] = "sample"
    """Termination: with probability 1 - cont, where cont is below 0.5, or never."""
    penalty: float = 0.0
    """Reward lost for every unit of the world's disagreement, in reward units (MOPO, arXiv 2005.13239)."""
    actions: Literal["agent", "task"] = "agent"
    """The action space of the wrapped task, in which the agent acts, or that of the real task itself."""
    rows: int = 8
    """Dreams computed at a time, 1 or a multiple of 4: more are faster for many dreams, fewer for one. Results are the
    same for the same `rows`. In batches of other sizes a row's last bits depend on its place (measured, x86-64)."""
    device: str = "cpu"
    """Where an agent given by its path is loaded; an agent in memory stays where it is."""

    def __post_init__(self) -> None:
        for name, choices in (("obs", ("pixels", "latent", "both")), ("cont", ("sample", "threshold", "ignore")),
                              ("actions", ("agent", "task"))):  # fmt: skip
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        for name, least in (("horizon", 2), ("rows", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.rows > 1 and self.rows % 4:
            raise UsageError(f"rows must be 1 or a multiple of 4, got {self.rows}: in other batches the last bits of a "
                             "dream depend on its place")  # fmt: skip
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise UsageError(f"penalty must be at least 0, got {self.penalty}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> DreamOptions:
        """From keyword arguments. Raises UsageError for an unknown one, naming the nearest."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                raise UsageError(f"a dream has no option {name!r}; {hint}")
        return cls(**values)


class Subject(NamedTuple):
    """What is dreamed."""

    world: Any
    """A `WorldModel`."""
    spaces: Spaces
    starts: Starts
    agent: Any
    """The agent it belongs to; None for a world alone."""


def subject_of(checkpoint: Any, spaces: Spaces | None, starts: Starts | None, device: str) -> Subject:
    """The world behind `checkpoint`: a path, an `Agent`, or a `WorldModel` (then `spaces` and `starts` are needed).

    Raises UsageError for anything else, and for starts that are not `Starts`; CorruptError for starts of another agent.
    """
    if starts is not None and not isinstance(starts, Starts):
        raise UsageError(f"starts must be real posterior states, as `collect_starts(agent)` makes them, not a made-up "
                         f"{type(starts).__name__}")  # fmt: skip
    if isinstance(checkpoint, (str, os.PathLike)):
        agent = _loaded(*_version(Path(checkpoint)), device)
    elif hasattr(checkpoint, "imagine"):
        if spaces is None or starts is None:
            raise UsageError("a world model alone does not know what acts in it, nor where dreams begin: "
                             "give spaces=Spaces(...) and starts=collect_starts(agent)")  # fmt: skip
        return _checked(Subject(checkpoint, spaces, starts, None))
    elif hasattr(checkpoint, "world") and hasattr(checkpoint, "spaces"):
        agent = checkpoint
    else:
        raise UsageError(f"checkpoint must be the path of an agent, an Agent or a WorldModel, not {checkpoint!r}")
    if starts is None and agent.starts is None:
        name = f"agent {str(checkpoint)!r}" if agent is not checkpoint else "agent"
        warnings.warn(f"this {name} has no packaged starts: a few real episodes of {agent.config.env.id} are driven "
                      "once to get some", stacklevel=4)  # fmt: skip
        agent.starts = collect_starts(agent)
    return _checked(Subject(agent.world, agent.spaces, starts or agent.starts, agent))


def _checked(subject: Subject) -> Subject:
    subject.starts.check(subject.world.initial(1).shape[1])
    return subject


def _version(path: Path) -> tuple[Path, int]:
    """The path and the time at which what it holds was written: a newer agent is loaded anew."""
    stamps = [p.stat().st_mtime_ns for p in (path, path / "best") if p.exists()]
    return path.absolute(), max(stamps, default=0)


@functools.lru_cache(maxsize=2)
def _loaded(path: Path, _written: int, device: str) -> Any:
    """The agent at `path`, shared by all dreams of it in this process: they only read it."""
    return worldmodel.load(path, device)
