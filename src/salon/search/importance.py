"""How much each searched key alone goes with the objective.

The correlation ratio (Pearson 1905) between the ranks of the objective and groups of trials: those
of one choice, or, for a number, the third of the trials with the lowest values, the middle and the
highest, so that a best value in the middle of a range shows. Beside it stands what chance gives:
the value that 95 % of shuffled studies stay below. What it cannot see: effects of two keys
together. The sign is that of Spearman's rank correlation.
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
    sign: int  # 1: the objective grows with the key, -1: it falls, 0: a choice


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
        groups = np.array([str(x) for x in column]) if numbers is None else thirds(numbers)
        strength = float(_ratio(groups, ranks[None])[0])
        chance = float(np.quantile(_ratio(groups, shuffled), 0.95))
        found.append(
            Importance(key, strength, chance, 0 if numbers is None else sign(numbers, ranks))
        )
    return sorted(found, key=lambda one: -one.strength)


def as_numbers(column: Sequence[Any]) -> list[float] | None:
    """None where they are not all numbers."""
    if any(isinstance(x, bool) or x is None for x in column):
        return None
    try:
        return [float(x) for x in column]
    except ValueError:
        return None


def thirds(numbers: Sequence[float]) -> np.ndarray:
    """Which third of the trials each is in; equal numbers stay together."""
    ranks = rankdata(numbers, "min") - 1
    return (ranks * 3 // len(numbers)).astype(int)


def sign(numbers: Sequence[float], ranks: np.ndarray) -> int:
    x = rankdata(numbers)
    return int(np.sign(np.dot(x - x.mean(), ranks - ranks.mean())))


def _ratio(groups: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The share of the variance of ranks y (S, N) that lies between groups (N), its root."""
    mean = y.mean(axis=1, keepdims=True)
    total = ((y - mean) ** 2).sum(axis=1)
    between = np.zeros(len(y))
    for group in np.unique(groups):
        inside = y[:, groups == group]
        between += inside.shape[1] * (inside.mean(axis=1) - mean[:, 0]) ** 2
    return np.sqrt(np.divide(between, total, out=np.zeros(len(y)), where=total > 0))
