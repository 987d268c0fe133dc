"""The replay on disk: one immutable file an episode, written once; checkpoints name them by hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import storage
from worldmodel.errors import CorruptError
from worldmodel.replay import Replay


class Shards:
    """Episodes of a run in `folder`. A shard is {file, start, stop, sha256}; start and stop are global steps."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.written: list[dict[str, Any]] = []
        self.ends: list[int] = []
        """Where episodes ended that are not on disk yet."""

    def add(self, stop: int) -> None:
        """An episode ended: its steps come before the global index `stop`."""
        self.ends.append(stop)

    def write(self, replay: Replay) -> list[dict[str, Any]]:
        """Writes episodes that ended since the last call; returns all shards that the replay still remembers."""
        oldest = replay.total - len(replay)
        start = self.written[-1]["stop"] if self.written else 0
        for stop in self.ends:
            start = max(start, oldest)
            if stop > start:
                file = f"steps-{start:09d}-{stop:09d}.safetensors"
                rows = {name: torch.from_numpy(values) for name, values in replay.rows(start, stop).items()}
                digest = storage.write_file(self.folder / file, rows)
                self.written.append({"file": file, "start": start, "stop": stop, "sha256": digest})
            start = stop
        self.ends = []
        self.written = [shard for shard in self.written if shard["stop"] > oldest]
        return self.written

    def load(self, replay: Replay, shards: list[dict[str, Any]], warn: Callable[[str], None]) -> None:
        """Fills an empty replay. A shard that is missing or damaged costs the memory up to its end, with a warning."""
        self.written, self.ends = [], []
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

    def thin(self, needed: list[dict[str, Any]]) -> None:
        """Removes the files that no kept checkpoint needs, and what a killed writer left behind."""
        storage.sweep(self.folder)
        names = {shard["file"] for shard in needed}
        for path in self.folder.glob("steps-*.safetensors"):
            if path.name not in names:
                path.unlink(missing_ok=True)
