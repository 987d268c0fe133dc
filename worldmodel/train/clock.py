"""Where the time goes: wall-clock seconds by section, without overlap."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Accumulates seconds: `with clock("world"): ...`; what no section claimed is the rest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.began = time.perf_counter()

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[section] += time.perf_counter() - start

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self.began

    def shares(self) -> dict[str, float]:
        """Share of the elapsed time by section, with `rest` for what none claimed."""
        total = max(self.elapsed(), 1e-9)
        shares = {section: seconds / total for section, seconds in self.seconds.items()}
        return shares | {"rest": max(0.0, 1 - sum(shares.values()))}
