"""What a multirun leaves to do, done at the door.

Hydra takes an error in a callback for a warning, so a callback only remembers what is due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

due: list[Callable[[], object]] = []  # once every job is finished
anyway: list[Callable[[], object]] = []  # also where jobs failed


@contextlib.contextmanager
def concluded() -> Iterator[None]:
    try:
        yield
    except SystemExit as end:
        if end.code in (1, 2):  # and not of a signal, which leaves no time
            _do(anyway)
        raise
    _do(anyway)
    _do(due)


def _do(tasks: list[Callable[[], object]]) -> None:
    while tasks:
        tasks.pop(0)()
