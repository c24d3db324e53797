"""What a machine may run out of while a model is trained, as a message that says what to lower."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In words of torch's, where it raises a RuntimeError as for anything else.
OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "out of memory", "bad_alloc")
OF_WORKERS = ("DataLoader worker",)


class OutOfMemory(ValueError):
    pass


class LostWorker(ValueError):
    pass


class FullDisk(ValueError):
    pass


@contextlib.contextmanager
def explained(cfg: Any, folder: Path, go_on: str) -> Iterator[None]:
    """Turns those errors into ValueErrors; all others pass.

    What fails first is what is told: on a full disk closing the logs fails too, and later.
    """
    try:
        yield
    except Exception as error:
        chain = list(_chain(error))
        for cause in reversed(chain):
            if isinstance(cause, ValueError) and _ours(cause):
                if cause is error:
                    raise
                raise cause from None
        for cause in reversed(chain):
            if (named := _named(cause, cfg, folder, go_on)) is not None:
                raise named from error
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    """From the last to the first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _ours(error: BaseException) -> bool:
    return type(error).__module__.startswith("salon.")


def _named(error: BaseException, cfg: Any, folder: Path, go_on: str) -> ValueError | None:
    text = str(error)
    if isinstance(error, RuntimeError) and text.startswith(OF_WORKERS):
        return LostWorker(
            f"a process that reads data is gone ({_line(error)}). Where the system ended it, "
            f"memory was short: lower data.workers (now {cfg.data.workers}) or data.window (now "
            f"{cfg.data.window}), of which each worker keeps its lanes' in memory; a bus error "
            f"means that /dev/shm is full. {_kept(folder, go_on)}"
        )
    short = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if short or (isinstance(error, RuntimeError) and any(words in text for words in OF_MEMORY)):
        return OutOfMemory(
            f"out of memory with batch_size={cfg.batch_size} at "
            f"data.resolution={cfg.data.resolution}, {cfg.trainer.precision} ({_line(error)}). "
            "Lower batch_size, with trainer.accumulate_grad_batches=2 for the same step (no GAN "
            "can), or data.resolution, or say trainer.precision=bf16-mixed; in a "
            f"validation, callbacks.quality.batch_size. {_kept(folder, go_on)}"
        )
    if isinstance(error, OSError) and error.errno in FULL:
        place = error.filename or folder
        return FullDisk(f"no room left to write {place} ({error.strerror}). {_kept(folder, go_on)}")
    return None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _kept(folder: Path, go_on: str) -> str:
    if not any(folder.glob("checkpoints/*.ckpt")):
        return "No checkpoint was written yet"
    return f"The last checkpoint is as it was; with the same settings, go on with {go_on}"
