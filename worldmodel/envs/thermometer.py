"""Numbers as thermometers: a world model whose loss is a sum of squares then cares for them as for a picture."""

from __future__ import annotations

import numpy as np

PLACES = 20


def thermometer(share: float, places: int = PLACES) -> np.ndarray:
    """`share` (0 to 1) as (places,) float32: place i is filled between i / places and (i + 1) / places."""
    return np.clip(share * places - np.arange(places), 0, 1).astype(np.float32)
