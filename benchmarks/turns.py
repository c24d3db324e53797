"""Contestants in turns, in process CPU time: what all benchmarks of calls share."""

import time
from collections.abc import Callable, Sequence


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """CPU seconds of each call, in the order A B A B, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.process_time()
            call()
            if i > 0:
                taken.append(time.process_time() - start)
    return seconds
