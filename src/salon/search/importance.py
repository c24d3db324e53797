"""How much each searched key alone goes with the objective.

Between ranks, so that scales and outliers do not matter: for numbers the size of Spearman's
correlation (Spearman 1904), for choices the correlation ratio (Pearson 1905). Beside each stands
what chance gives: the value that 95 % of shuffled studies stay below. What such a number cannot
see: effects of two keys together, and a best value in the middle of a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

FEWEST = 4  # trials below which nothing is said
SHUFFLES = 1000


class Importance(NamedTuple):
    key: str
    strength: float  # 0 to 1
    chance: float  # what 95 % of shuffled studies stay below
    sign: int  # of the correlation: 1, -1, or 0 for a choice


def importances(
    params: Sequence[dict[str, Any]], values: Sequence[float], *, seed: int = 0
) -> list[Importance]:
    """Strongest first; keys that have one value are left out. Empty for fewer than 4 trials."""
    if len(values) < FEWEST:
        return []
    found = []
    generator = np.random.default_rng(seed)
    ranks = rankdata(values)
    shuffled = np.stack([generator.permutation(ranks) for _ in range(SHUFFLES)])  # (S, N)
    keys = dict.fromkeys(key for one in params for key in one)
    for key in keys:
        column = [one.get(key) for one in params]
        if len(set(map(str, column))) < 2:
            continue
        numbers = as_numbers(column)
        measure = _ratio if numbers is None else _correlation
        given = np.array([str(x) for x in column]) if numbers is None else rankdata(numbers)
        signed = float(measure(given, ranks[None])[0])
        chance = float(np.quantile(np.abs(measure(given, shuffled)), 0.95))
        sign = 0 if numbers is None else int(np.sign(signed))
        found.append(Importance(key, abs(signed), chance, sign))
    return sorted(found, key=lambda one: -one.strength)


def as_numbers(column: Sequence[Any]) -> list[float] | None:
    """None where they are not all numbers."""
    if any(isinstance(x, bool) or x is None for x in column):
        return None
    try:
        return [float(x) for x in column]
    except ValueError:
        return None


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of ranks x (N) with each row of ranks y (S, N)."""
    x, y = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    below = np.sqrt((x**2).sum() * (y**2).sum(axis=1))
    return np.divide(y @ x, below, out=np.zeros(len(y)), where=below > 0)


def _ratio(groups: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of the variance of ranks y (S, N) that lies between groups (N), its root."""
    mean = y.mean(axis=1, keepdims=True)
    total = ((y - mean) ** 2).sum(axis=1)
    between = np.zeros(len(y))
    for group in np.unique(groups):
        inside = y[:, groups == group]
        between += inside.shape[1] * (inside.mean(axis=1) - mean[:, 0]) ** 2
    return np.sqrt(np.divide(between, total, out=np.zeros(len(y)), where=total > 0))
