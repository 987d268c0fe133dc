"""World models that wrap a world model: the same world, dreamed otherwise, or with an answer more."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor

from worldmodel.errors import UsageError
from worldmodel.models.base import Batch, Step, WorldModel
from worldmodel.models.ensemble import Ensemble


class _Same:
    """All that a wrapper leaves to the world that it wraps."""

    world: WorldModel

    def initial(self, batch: int) -> Tensor:
        return self.world.initial(batch)

    def observe(self, state: Tensor, action: Tensor, obs: dict[str, Tensor], is_first: Tensor) -> Tensor:
        return self.world.observe(state, action, obs, is_first)

    def outcome(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.world.outcome(state)

    def features(self, state: Tensor) -> Tensor:
        return self.world.features(state)

    def decode(self, state: Tensor) -> Tensor | None:
        return self.world.decode(state)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return self.world.loss(batch)


class Temperature(_Same, WorldModel):
    """A world whose dreams are sampled at another temperature; what it makes of real observations stays as it is.

    Below 1 the likelier futures are dreamed more often, near 0 the likeliest alone; above 1 the unlikelier ones too: a
    dream that is harder to exploit (Ha and Schmidhuber, "World Models", 2018: 1.15 served best in VizDoom).

    Args:
        world: whose `advance(state, action, temperature)` samples at a temperature; 1 must be what it does without.
        temperature: above 0.

    Raises UsageError for a temperature that is not positive, or a world that cannot sample at one.
    """

    def __init__(self, world: WorldModel, temperature: float):
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature must be a positive number, got {temperature}; 0.01 is all but the mode")
        together = type(world).imagine is WorldModel.imagine
        if not together or "temperature" not in inspect.signature(world.advance).parameters:
            raise UsageError(f"{type(world).__name__} cannot be sampled at a temperature: it has no "
                             "`advance(state, action, temperature)`; leave the temperature at 1")  # fmt: skip
        self.world, self.temperature = world, float(temperature)
        self.feature_bound = world.feature_bound

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        return self.world.advance(state, action, self.temperature)


class Unsure(_Same, WorldModel):
    """A world that also says how unsure it is: with the disagreement of an ensemble about what follows.

    Made by `worldmodel.eval.gap.disagreement.fit_disagreement`. Dreams and weights are those of `world`: what is saved
    is `world` alone, an agent's version stays the same, and heads are fitted anew, in seconds, after loading.
    """

    def __init__(self, world: WorldModel, ensemble: Ensemble):
        super().__init__()
        self.world, self.ensemble = world, ensemble
        self.feature_bound = world.feature_bound

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        """(B,), at least 0: the variance over the heads of the features that follow `state` (B, S) and `action`."""
        return self.ensemble.disagreement(self.world.features(state).float(), action.float())

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        return self.world.imagine(state, action)

    def tempered(self, temperature: float) -> WorldModel:
        return Unsure(self.world.tempered(temperature), self.ensemble)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.world.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.world.load_state_dict(*args, **kwargs)
