"""Numbers as thermometers: a world model whose loss is a sum of squares then cares for them as for a picture."""

from __future__ import annotations

import numpy as np

PLACES = 20


def thermometer(share: float) -> np.ndarray:
    """`share` (0 to 1) as (20,) float32: place i is filled between i / 20 and (i + 1) / 20."""
    return np.clip(share * PLACES - np.arange(PLACES), 0, 1).astype(np.float32)
