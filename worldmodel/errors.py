"""Errors a user can act on: each names the thing and the remedy, and has the exit code of the command line."""

from __future__ import annotations


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
