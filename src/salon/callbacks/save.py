"""`checkpoints/last.ckpt`: every so many batches, before validations, where a signal ends a run.

Written aside, flushed and renamed, so it is whole whatever happens, and never of weights that are
not finite. Only the state after a whole batch is saved, so whatever a run goes on from, it ends as
if nothing had stopped it.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO

from salon import files
from salon.callbacks.guard import Diverged, not_finite
from salon.callbacks.stop import Signals
from salon.models.base import Trainee


class NotSaved(ValueError):
    """A checkpoint could not be written; the one before is as it was."""


class WholeFiles(TorchCheckpointIO):
    """Lightning's own writes by way of the system's folder for temporary files, which may be full,
    or on another disk."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with files.aside(path, durable=True) as partial, partial.open("wb") as file:
                file.write(buffer.getbuffer())
        except OSError as error:
            raise NotSaved(
                f"{path} could not be written: {error}. It needs {megabytes(buffer.tell())}, and "
                f"{path.parent} has {megabytes(shutil.disk_usage(path.parent).free)} left. "
                + ("The checkpoint before this one is as it was. " if path.exists() else "")
                + f"Make room, and go on with resume={path.parents[1]}"
            ) from error


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


class SaveLast(Callback):
    """Counts batches, since Lightning's own counts every optimiser's steps. Stands last, so that
    what the other callbacks have to save is up to date."""

    def __init__(self, *, path: Path, every: int, go_on: str | None = None) -> None:
        if every < 1:
            raise ValueError(f"budget.checkpoint_every={every}; expected at least 1 batch")
        self.path, self.every = path, every
        self.go_on = go_on or f"python train.py resume={path.parents[1]}"  # as a user says it
        self.signals = Signals()
        self.saved = -1  # batches in the last checkpoint; -1 before training
        self.ended: int | None = None  # by a signal: what the process ends with
        self._due = False
        self._between = False  # batches: a save that Lightning's loop does not expect there

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        self.saved = pl_module.batches_seen
        self.signals.listen()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._end_here(trainer)
        self.signals.within = True

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        self._end_here(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Trainee)
        seen, done = pl_module.batches_seen, batch_idx + 1
        at_end = seen == pl_module.budget or trainer.should_stop
        self._due |= seen % self.every == 0 or done % (trainer.val_check_batch or math.inf) == 0
        if trainer.world_size > 1:  # all or none, at the same batch, and for the same reason
            came = torch.tensor(self.signals.asked or 0, device=pl_module.device)
            self.signals.asked = int(trainer.strategy.reduce(came, reduce_op="max")) or None
        asked = self.signals.asked is not None
        # Gradients that wait for more of their batch are in no checkpoint.
        stepped = done % trainer.accumulate_grad_batches == 0
        if at_end or (stepped and (self._due or asked)):
            if asked:
                self.signals.no_hurry()
            self.save(trainer)
        self.signals.within = False
        if asked and stepped and not at_end:
            raise SystemExit(self._end(trainer))

    # -- ending --------------------------------------------------------------------------------

    def _end_here(self, trainer: Trainer) -> None:
        if self.signals.asked is not None and trainer.world_size == 1:
            raise SystemExit(self.signals.code)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        assert isinstance(pl_module, Trainee)
        self.signals.no_hurry()
        try:
            if self.signals.asked is None or self.ended is not None:
                return
            whole = not self.signals.within and trainer.world_size == 1
            whole &= pl_module.batches_seen % trainer.accumulate_grad_batches == 0
            if whole and self.saved not in (-1, pl_module.batches_seen):
                self._between = True
                self.save(trainer)
            self._end(trainer)
        finally:
            self.signals.leave()

    def _end(self, trainer: Trainer) -> int:
        """Says how to go on; what the process ends with."""
        self.ended = 0
        if trainer.is_global_zero:  # else Lightning kills rank 0, which still closes its loggers
            self.ended = self.signals.code
            saved = "nothing was saved yet, start it again"
            if self.path.exists():
                saved = f"saved after batch {max(self.saved, 0)}; go on with {self.go_on}"
            self.ended, why = self.signals.last_words()
            print(f"\n{why}: {saved}", file=sys.stderr, flush=True)
        return self.ended

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever else breaks while a signal ends the run, such as workers that got it too."""
        try:
            yield
        except BaseException:
            if self.ended is None:
                raise
            raise SystemExit(self.ended) from None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.leave()

    # -- saving --------------------------------------------------------------------------------

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert isinstance(pl_module, Trainee)
        # Lightning takes the last batch of one budget for the last of any: a finished run that is
        # resumed with a larger budget would train nothing, and not say so.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = progress["total"]["processed"] >= pl_module.budget
        # And a validation that was due for done; this is its sign of one that has begun.
        if not progress["is_last_batch"]:
            validation = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for count in ("total", "current"):
                begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
                validation[count] |= begun

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._between:
            return
        # As at the end of the batch, which is where Lightning knows how to go on.
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
        for count in ("total", "current"):
            progress = loop["epoch_loop.batch_progress"][count]
            done = progress["processed"]
            progress |= {"ready": done, "started": done, "completed": done - 1}

    def save(self, trainer: Trainer) -> None:
        module = trainer.lightning_module
        assert isinstance(module, Trainee)
        if bad := not_finite(module):
            raise Diverged(
                f"after batch {module.batches_seen} the weights of {bad[0]} are not finite "
                f"({len(bad)} in all), so they are not saved. To see where it begins, go on from "
                f"the checkpoint before with callbacks.guard.every=1: {self.go_on}"
            )
        trainer.save_checkpoint(self.path, weights_only=False)  # all ranks take part; rank 0 writes
        self.saved, self._due = module.batches_seen, False
