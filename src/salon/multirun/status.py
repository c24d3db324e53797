"""What a job of a multirun says of itself, in a file of its folder.

A job may run in another process or on another machine, and may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from salon import files

FILE, ERROR, LOG = "status.json", "error.txt", "log.txt"

RUNNING, FINISHED, FOUND = "running", "finished", "found finished"
FAILED, INTERRUPTED, NOT_RUN = "failed", "interrupted", "not run"
DONE = (FINISHED, FOUND)


class Status(NamedTuple):
    status: str
    overrides: list[str]
    started: float  # seconds since 1970
    host: str
    pid: int
    objective: float | None = None
    error: str | None = None  # in a line
    mistake: bool = False  # whether the user can mend the error
    seconds: float | None = None


def begin(folder: Path, overrides: list[str]) -> Status:
    now = Status(RUNNING, overrides, time.time(), socket.gethostname(), os.getpid())
    (folder / ERROR).unlink(missing_ok=True)
    _write(folder, now)
    return now


def end(folder: Path, begun: Status, status: str, **told: Any) -> None:
    seconds = round(time.time() - begun.started, 3)
    _write(folder, begun._replace(status=status, seconds=seconds, **told))


def read(folder: Path) -> Status | None:
    """None where no job has begun."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Status(**json.loads((folder / FILE).read_text()))
    return None


def alive(status: Status) -> bool:
    """Whether its process may still run; of another machine's, that is not known."""
    if status.host != socket.gethostname():
        return True
    if status.pid == os.getpid():  # the job ran here, and here nothing runs any more
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return not _zombie(status.pid)


def _zombie(pid: int) -> bool:
    """Dead, and not yet reaped by its parent; told on Linux only."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _write(folder: Path, status: Status) -> None:
    files.write(folder / FILE, json.dumps(status._asdict(), indent=2))
