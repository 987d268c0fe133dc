"""What a run lived through, for whoever looks at it from outside: nothing is written, no lock is taken."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from worldmodel import storage
from worldmodel.config import from_file
from worldmodel.envs import Spaces
from worldmodel.envs.mirror import Mirror
from worldmodel.errors import UsageError
from worldmodel.replay import Replay
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.shards import Shards


def remembered(run: str | Path, warn: Callable[[str], None] = warnings.warn) -> Replay:
    """The replay memory of the run in the folder `run` as of its newest whole checkpoint; the run may be going on.

    `warn` is told what is damaged, and is left out. Raises UsageError when there is no checkpoint, or one of another
    version of the library; CorruptError when none is whole.
    """
    found = Checkpoints(run, warn=warn).latest()
    if found is None:
        raise UsageError(f"no checkpoint in {str(run)!r}: give the folder of a training run")
    files = found[1]
    config = from_file(files["run.json"]["config"], found[0] / "run.json")
    spaces, r = Spaces.from_dict(storage.read_file(Path(run) / "spaces.json")), config.replay
    mirror = Mirror.of(spaces) if r.mirror else None
    width = files["states.npy"].shape[1] // (2 if mirror else 1)
    replay = Replay(spaces, width, r.gigabytes, r.length, r.online, config.seed, mirror, r.recent, r.after, r.newest)
    Shards(Path(run) / "replay").restore(replay, files, warn)
    return replay
