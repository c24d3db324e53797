"""What stands at every door: where conf/ is, and what becomes of mistakes, bugs and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from salon import slurm
from salon.config import flatten, unknown

CONF = Path(__file__).resolve().parents[2] / "conf"
# Choices that come with an extra of pyproject.toml.
EXTRAS = {
    "hydra/launcher/joblib": "launch",
    "hydra/launcher/submitit_local": "launch",
    "hydra/launcher/submitit_slurm": "launch",
    "hydra/launcher/ray": "ray",
    "hydra/sweeper/optuna": "sweep",
}


@contextlib.contextmanager
def errors_for_people(go_on: Callable[[], str] = str) -> Iterator[None]:
    """At a door: a user's mistake is a message and exit code 2, a bug is a traceback and 1.

    `go_on` gives the end of the message that the command was stopped.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # the exceptions themselves, instead of Hydra's short form
    try:
        with _stoppable(go_on):
            yield
    except KeyboardInterrupt:
        print(f"\nstopped{go_on()}", file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        if os.environ.get("SALON_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}\n(SALON_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def _stoppable(go_on: Callable[[], str]) -> Iterator[None]:
    """SIGINT and SIGTERM end what runs at once, with exit codes 130 and 143.

    Lightning alone ends with 1 after the first, and after the second waits for the end of the
    batch, which may never come, and ends with 0. While a model is trained, `salon.callbacks.stop`
    listens in place of this. Inside SLURM its warning puts the job back into the queue.
    """
    process, came = os.getpid(), 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if os.getpid() != process and number == signal.SIGINT:
            raise KeyboardInterrupt  # of a worker, which ends quietly at that
        if os.getpid() != process and number == slurm.WARNING:
            return  # it is for the run, which may need its workers yet
        came = number
        raise SystemExit(128 + number)

    numbers = [signal.SIGINT, signal.SIGTERM, *([slurm.WARNING] if slurm.inside() else [])]
    # What a shell has told us to ignore (`nohup`, `&` in a script) stays ignored.
    numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except BaseException:
        # Any exception: where workers get the signal too, the loader may miss them first.
        if not came:
            raise
        code, why = 128 + came, "stopped" if came == signal.SIGINT else "terminated"
        if came == slurm.WARNING and slurm.inside():
            code, why = slurm.requeue()
        print(f"\n{why}{go_on()}", file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(error: BaseException) -> str:
    """Hydra's message, and for an unknown key the nearest known one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_option(str(error.missing_cfg_file)) or str(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing; say {error.full_key}=VALUE (--help shows how)"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConfigKeyError | AttributeError):
        cause = cause.__cause__
    root = getattr(cause, "parent_node", None)
    if cause is None or root is None:
        return str(error)
    while root._get_parent() is not None:
        root = root._get_parent()
    known = [key for key in flatten(root) if not key.startswith("hydra.")]
    return unknown(str(getattr(cause, "full_key", "")), known)


def _no_such_option(missing: str) -> str | None:
    """The message for GROUP/OPTION, which conf/ does not have."""
    missing = missing.removesuffix(".yaml")
    if extra := EXTRAS.get(missing):
        return f"{missing} is a plugin of Hydra's, not installed: pip install -e '.[{extra}]'"
    group, _, option = (missing.rpartition if "hydra/" in missing else missing.partition)("/")
    folder = CONF / group
    names = sorted(str(f.relative_to(folder).with_suffix("")) for f in folder.rglob("*.yaml"))
    if not names:
        return None
    nearest = get_close_matches(option, names, n=1, cutoff=0.0)[0]
    return (
        f"unknown choice {group}={option}; the nearest known one is {group}={nearest}. There are: "
        f"{', '.join(names)}"
    )
