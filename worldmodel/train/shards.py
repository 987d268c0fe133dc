"""The replay on disk: immutable files of so many steps, wherever episodes end; checkpoints name them by hash.

The steps since the last file are in the checkpoint itself: what it writes does not grow with the length of episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import storage
from worldmodel.errors import CorruptError
from worldmodel.replay import Replay

STEPS = 1000
"""Steps of a shard, which ends at a multiple of it: 12 MB of 64 x 64 images."""


class Shards:
    """Steps of a run in `folder`. A shard is {file, start, stop, sha256}; start and stop are global steps."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: list[dict[str, Any]] = []

    def rest(self, replay: Replay) -> int:
        """The global step from which on the replay is not on disk."""
        return max(replay.total - len(replay), self.written[-1]["stop"] if self.written else 0)

    def write(self, replay: Replay) -> list[dict[str, Any]]:
        """Writes the shards completed since the last call; returns all that the replay still remembers."""
        start = self.rest(replay)
        while (stop := (start // STEPS + 1) * STEPS) <= replay.total:
            file = f"steps-{start:09d}-{stop:09d}.safetensors"
            rows = {name: torch.from_numpy(values) for name, values in replay.rows(start, stop).items()}
            digest = storage.write_file(self.folder / file, rows)
            self.written.append({"file": file, "start": start, "stop": stop, "sha256": digest})
            start = stop
        self.written = [shard for shard in self.written if shard["stop"] > replay.total - len(replay)]
        return self.written

    def load(self, replay: Replay, shards: list[dict[str, Any]], warn: Callable[[str], None]) -> None:
        """Fills an empty replay. A shard that is missing or damaged costs the memory up to its end, with a warning."""
        self.written = []
        for shard in shards:
            try:
                rows = storage.read_file(self.folder / shard["file"], shard["sha256"])
            except CorruptError as error:
                warn(f"everything before step {shard['stop']} is forgotten, the run goes on without it: {error}")
                replay.clear()
                self.written = []
                continue
            replay.restore(shard["start"], {name: np.asarray(values) for name, values in rows.items()})
            self.written.append(shard)

    def restore(self, replay: Replay, files: dict[str, Any], warn: Callable[[str], None]) -> None:
        """Fills an empty replay with all that it held when the checkpoint with the content `files` was written."""
        values = files["run.json"]
        self.load(replay, values["shards"], warn)
        rest = {name: rows.numpy() for name, rows in files["running.safetensors"].items()}
        replay.restore(values["total"] - len(rest["reward"]), rest)
        replay.restore_states(files["states.npy"])
        replay.next_online = values["next_online"]

    def thin(self, needed: list[dict[str, Any]]) -> None:
        """Removes the files that no kept checkpoint needs, and what a killed writer left behind."""
        storage.sweep(self.folder)
        names = {shard["file"] for shard in needed}
        for path in self.folder.glob("steps-*.safetensors"):
            if path.name not in names:
                path.unlink(missing_ok=True)
