"""Learning rates as a factor of (batches seen, batches in the budget)."""

import math

from salon.models.base import Schedule


def warmup_cosine(*, warmup: int, final: float) -> Schedule:
    """Linear over `warmup` batches, then half a cosine down to `final` at the budget's end.

    Cosine: Loshchilov & Hutter 2017, Equation 5 without restarts. `final` 1 keeps the rate.
    """

    def factor(batch: int, batches: int) -> float:
        if batch < warmup:
            return (batch + 1) / warmup
        done = min(1.0, (batch - warmup) / max(1, batches - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

    return factor
