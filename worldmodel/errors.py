"""Errors a user can act on: each names the thing and the remedy, and has the exit code of the command line.

Codes: 0 done, 1 error, 2 wrong usage, 3 gate failed (`gap --fail-if`; not an error, the report is complete), 4 corrupt
file, 5 not finite, 74 cannot write, 75 and 130 stopped by a signal and resumable.
"""

from __future__ import annotations

GATE_FAILED = 3
"""What the command line leaves with when a verdict came out that was not to."""


class WorldModelError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line leaves with."""

    exit_code = 1


class UsageError(WorldModelError, ValueError):
    """A wrong argument, configuration or combination of them."""

    exit_code = 2


class CorruptError(WorldModelError):
    """A checkpoint, replay shard or agent whose content is not what was written, or not what is asked for."""

    exit_code = 4


class NumericalError(WorldModelError):
    """A loss, gradient or observation that is not finite."""

    exit_code = 5


class StorageError(WorldModelError, OSError):
    """Writing failed: disk full, file too large, read-only folder."""

    exit_code = 74
