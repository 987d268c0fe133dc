"""Agents that learn by dreaming: a world model from pixels, a policy trained inside it, and how true the dream was."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.agent import Agent

__version__ = "0.1.0"


def load(path: str, device: str = "cpu") -> Agent:
    """The trained agent stored at `path`: a run folder (its best agent) or an agent folder.

    Raises UsageError when nothing is there and CorruptError when a file is not what was written.
    """
    from worldmodel.agent import Agent  # torch is imported only here: `import worldmodel` stays cheap

    return Agent.load(path, device)
