"""Two ranks: what befalls one of them ends both, at the same batch.

This file is also the script that the ranks run: `python test_ranks.py FOLDER WHAT`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

import salon
import toy
from salon import checkpoint
from salon.callbacks.guard import Guard
from salon.callbacks.save import SaveLast
from salon.types import Batch

AT = 3  # the batch in which it happens, on rank 1 alone


class Befallen(toy.Toy):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1 and batch_idx + 1 == AT:
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                loss = loss * float("inf")
        self.log("train/loss", loss)
        return loss


def rank(folder: Path, what: str) -> None:
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    guard = Guard(folder=folder / "diverged", go_on="", every=4 if what == "seldom" else 1)
    save = SaveLast(path=folder / "last.ckpt", every=1 if what == "loss" else 100)
    options: dict[str, Any] = {"devices": 2, "strategy": strategy}
    trainer = toy.trainer([guard, save], batches=8, validate_every=8, **options)
    trainer.fit(Befallen(what), datamodule=toy.ToyData())


@pytest.mark.parametrize(("what", "saved"), [("loss", 2), ("seldom", None), ("signal", 3)])
def test_what_befalls_one_ends_both(what: str, saved: int | None, tmp_path: Path) -> None:
    places = [Path(toy.__file__).parent, Path(salon.__file__).parents[1]]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places)),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), what],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    if saved is not None:
        progress = checkpoint.read(tmp_path / "last.ckpt")["loops"]["fit_loop"]
        assert progress["epoch_loop.batch_progress"]["total"]["processed"] == saved
    if what == "signal":
        assert "saved after batch 3" in done.stderr
        return
    told = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("diverged/*.json"))]
    assert f"diverged in batch {AT}" in done.stderr, done.stderr[-3000:]
    # The one whose fault it was may be gone before the other has written its own down.
    assert told
    assert {report["batch"] for report in told} == {AT}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank(Path(sys.argv[1]), sys.argv[2])
