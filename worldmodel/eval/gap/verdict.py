"""One word for the gap, said only when the interval allows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from worldmodel.eval.gap.intervals import Interval, clusters_needed

DELTA = 0.05
"""A normalised gap within +-DELTA counts as none."""

PHANTOM_RATE = 0.2
"""An excess share of promised reward that reality does not pay, beyond which an optimistic dream is exploited."""

FEWEST = 8
"""Episodes below which a bootstrap interval is not to be trusted with a verdict."""

VERDICTS = ("FAITHFUL", "OPTIMISTIC", "PESSIMISTIC", "EXPLOITED", "INCONCLUSIVE")


@dataclass(frozen=True)
class Verdict:
    """The word, the sentence, and what would settle it."""

    name: str
    """One of `VERDICTS`."""
    reason: str
    needed: int | None = None
    """For INCONCLUSIVE: about how many episodes it would take; None where that cannot be said."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)


def judge(gap: Interval, phantom: Interval, excess: float, order_reversal: bool = False) -> Verdict:
    """The verdict on the normalised gap g, gated on its 95 % interval.

        FAITHFUL      the whole interval lies within +-DELTA
        OPTIMISTIC    it lies above DELTA: the dream promises more than reality pays
        PESSIMISTIC   it lies below -DELTA
        EXPLOITED     OPTIMISTIC, the phantom part (dynamics + reward head) lies above DELTA too, and the policy lives
                      on it: `excess` is above PHANTOM_RATE, or the dream reverses the real order of two policies
        INCONCLUSIVE  anything else, or fewer than FEWEST episodes

    Args:
        gap, phantom: normalised, over the same starts. excess: phantom rate, see `phantom.py`. order_reversal: whether
            two policies were found whose dreamed order is significantly the reverse of the real one.
    """
    if gap.low is None or gap.high is None or gap.clusters < FEWEST:
        wanted = clusters_needed(gap, DELTA)
        reason = f"{gap.clusters} episodes are too few for a verdict: an interval needs at least {FEWEST}"
        return Verdict("INCONCLUSIVE", reason, max(FEWEST, wanted or 0))
    told = f"g = {gap.mean:+.3f}, 95 % interval [{gap.low:+.3f}, {gap.high:+.3f}]"
    if gap.low >= -DELTA and gap.high <= DELTA:
        return Verdict("FAITHFUL", f"the dream pays what reality pays: {told} lies within ±{DELTA}")
    if gap.high < -DELTA:
        return Verdict("PESSIMISTIC", f"the dream promises less than reality pays: {told} lies below -{DELTA}")
    if gap.low > DELTA:
        if phantom.low is not None and phantom.low > DELTA and (order_reversal or excess > PHANTOM_RATE):
            why = (
                "the dream reverses the order of policies"
                if order_reversal
                else f"{excess:.0%} more of it goes unpaid than an uncertain future explains"
            )
            return Verdict("EXPLOITED", f"the policy lives on reward that reality does not pay: {told}; {why}")
        return Verdict("OPTIMISTIC", f"the dream promises more than reality pays: {told} lies above {DELTA}")
    needed = clusters_needed(gap, DELTA)
    more = f"about {needed} episodes would settle it" if needed else "it lies on the border"
    return Verdict("INCONCLUSIVE", f"{told} crosses ±{DELTA}: {more}", needed)
