"""What ends a run: images, seconds or operations, whichever are used up first, in every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

import toy
from salon import run
from salon.callbacks.budget import Budget
from salon.callbacks.cost import Cost
from salon.callbacks.save import SaveLast
from salon.types import Batch

PIXELS = 3 * toy.SIDE**2
FLOPS = 2 * (2 * PIXELS * PIXELS + 2 * PIXELS)  # of a training picture of the toy
MODEL = "latent_diffusion/tiny"


def limited(seconds: float | None = None, flops: float | None = None) -> list[Any]:
    cost = Cost()
    return [cost, Budget(cost, seconds=seconds, flops=flops)]


def test_operations_end_a_run(tmp_path: Path) -> None:
    model, path = toy.Toy(), tmp_path / "last.ckpt"
    callbacks = [*limited(flops=4.5 * FLOPS * toy.BATCH), SaveLast(path=path, every=100)]
    toy.fit(model, callbacks, batches=50)
    assert model.batches_seen == 5, "the batch in which the budget is used up is the last one"
    assert path.exists()


def test_seconds_of_training_end_a_run(watch: toy.Watch) -> None:
    model = watch.model()  # a batch takes 2 s, and a validation 100
    toy.fit(model, limited(seconds=12), batches=50)
    assert model.batches_seen == 6


def test_the_first_limit_counts(watch: toy.Watch) -> None:
    model = watch.model()
    toy.fit(model, limited(seconds=12, flops=3 * FLOPS * toy.BATCH), batches=50)
    assert model.batches_seen == 3
    model = watch.model()
    toy.fit(model, limited(seconds=1000), batches=4)
    assert model.batches_seen == 4


def test_schedules_follow_the_share_that_is_used(watch: toy.Watch) -> None:
    asked: list[tuple[int, int]] = []

    def schedule(batch: int, batches: int) -> float:
        asked.append((batch, batches))
        return 1.0

    model = watch.model()
    model.schedule = schedule
    toy.fit(model, limited(seconds=20), batches=1000)
    # After two batches the clock has seen a timed one: 2 s a batch make 10.
    assert {batches for batch, batches in asked if batch > 2} == {10}


def test_what_is_due_in_some_batches_only_is_counted_in_its_share() -> None:
    """As lazy R1: every fourth batch costs more."""

    class Lazy(toy.Toy):
        period = 4

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            if self.batches_seen % 4 == 0:
                with torch.no_grad():
                    self.painter(batch.images.flatten(1))
            return super().training_step(batch, batch_idx)

    cost, extra = Cost(), 2 * PIXELS * PIXELS
    toy.fit(Lazy(), [cost], batches=7)
    assert cost.train_flops_per_image == pytest.approx(FLOPS + extra / 4)


def test_a_run_by_operations_is_resumed_exactly(
    mini: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = ["callbacks.quality=null", "callbacks.samples=null", "budget.batches=null"]
    measured = tmp_path / "measured"
    run.train(mini(MODEL, *quiet, "budget.images=16"), measured)
    told = json.loads((measured / "summary.json").read_text())
    assert told["images_seen"] == 16
    limit = f"budget.flops={4.5 * told['metrics']['cost/train_flops'] / 2}"
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run.train(mini(MODEL, *quiet, limit), whole)
    assert json.loads((whole / "summary.json").read_text())["batches"] == 5
    real = SaveLast.save

    def stop(self: SaveLast, trainer: Any) -> None:
        real(self, trainer)
        raise RuntimeError("stopped")

    monkeypatch.setattr(SaveLast, "save", stop)  # at batch 2
    with pytest.raises(RuntimeError, match="stopped"):
        run.train(mini(MODEL, *quiet, limit), halves)
    monkeypatch.setattr(SaveLast, "save", real)
    run.train(mini(MODEL, *quiet, limit, f"resume={halves}"), halves)
    first, second = (torch.load(f / "checkpoints/last.ckpt")["state_dict"] for f in (whole, halves))
    assert not [name for name in first if not torch.equal(first[name], second[name])]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["budget.batches=null"], "nothing ends this run"),
        (["budget.seconds=0"], r"budget\.seconds=0; expected null or a number above 0"),
        (["budget.images=1.5"], r"budget\.images=1\.5; expected null or a whole number"),
        (["budget.flops=1e9", "callbacks.cost=null"], r"counted by callbacks\.cost"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(
    mini: Callable[..., DictConfig], tmp_path: Path, changes: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run.train(mini(MODEL, *changes), tmp_path)
