"""What a multirun leaves to do, done at the door.

Hydra takes an error in a callback for a warning, so a callback only remembers what is due.
"""

from __future__ import annotations

from collections.abc import Callable

due: list[Callable[[], object]] = []


def conclude() -> None:
    while due:
        due.pop(0)()
