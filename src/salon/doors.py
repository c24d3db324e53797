"""What stands at every door: where conf/ is, and what becomes of mistakes, bugs and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from salon.config import flatten, unknown

CONF = Path(__file__).resolve().parents[2] / "conf"
EXTRAS = {"hydra/sweeper/optuna": "sweep"}  # choices that come with an extra of the package


@contextlib.contextmanager
def errors_for_people(go_on: str = "") -> Iterator[None]:
    """At a door: a user's mistake is a message and exit code 2, a bug is a traceback and 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # the exceptions themselves, instead of Hydra's short form
    try:
        with _terminable(go_on):
            yield
    except KeyboardInterrupt:
        print(f"\nstopped{go_on}", file=sys.stderr)
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
def _terminable(go_on: str) -> Iterator[None]:
    """SIGTERM ends what runs at once, as Ctrl-C does, with exit code 143.

    Lightning alone waits for the end of the batch, which may never come, and exits with 0.
    """
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except BaseException:
        # Any exception: where workers get the signal too, the loader may miss them first.
        if not terminated:
            raise
        print(f"\nterminated{go_on}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


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
    if extra := EXTRAS.get(missing.removesuffix(".yaml")):
        return f"{missing} is not installed; it comes with: pip install -e '.[{extra}]'"
    group, _, option = missing.removesuffix(".yaml").partition("/")
    folder = CONF / group
    names = sorted(str(f.relative_to(folder).with_suffix("")) for f in folder.rglob("*.yaml"))
    if not names:
        return None
    nearest = get_close_matches(option, names, n=1, cutoff=0.0)[0]
    return (
        f"unknown choice {group}={option}; the nearest known one is {group}={nearest}. There are: "
        f"{', '.join(names)}"
    )
