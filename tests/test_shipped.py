"""What ships under `checkpoints/`: whole, and usable by a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

import worldmodel
from worldmodel import storage

SHIPPED = sorted((Path(__file__).parents[1] / "checkpoints").iterdir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_what_ships_can_be_loaded_and_has_its_films_and_scores(folder: Path) -> None:
    agent = worldmodel.load(folder)
    assert agent.card["report"]["n"] == 100 and agent.starts is not None
    files = storage.read_folder(folder)  # verifies every hash
    assert all(files[film][4:8] == b"ftyp" for film in ("drive.mp4", "openloop.mp4"))
