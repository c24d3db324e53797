"""The price of a run: operations by formula, and a clock that runs in training alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from salon.callbacks.cost import Cost
from salon.callbacks.save import SaveLast
from salon.types import Batch

PIXELS = 3 * toy.SIDE**2


def test_operations_by_formula() -> None:
    rows, callback = toy.Rows(), Cost()
    toy.fit(toy.Toy(), [callback], loggers=[rows])
    forward = 2 * PIXELS * PIXELS + 2 * PIXELS  # painter and judge, for each image
    # Backward, of the weights alone: the images need no gradient.
    assert callback.train_flops_per_image == 2 * forward
    last = rows.having("cost/seconds")[-1]
    assert last["cost/train_flops_per_image"] == 2 * forward
    assert last["cost/train_flops"] == 2 * forward * 4 * toy.BATCH
    assert last["cost/sample_flops_per_image"] == 2 * PIXELS * PIXELS
    assert last["cost/parameters"] == PIXELS * (PIXELS + 1) + 2 * PIXELS + PIXELS + 1
    assert last["cost/peak_memory_mb"] > 50


def test_frozen_parameters_are_told_apart() -> None:
    rows, model = toy.Rows(), toy.Toy(text=toy.clip())
    toy.fit(model, [Cost()], loggers=[rows])
    last = rows.having("cost/seconds")[-1]
    frozen = sum(p.numel() for p in model.text.parameters())
    assert last["cost/parameters"] - last["cost/trained_parameters"] == frozen > 0


def test_parts_add_up(tmp_path: Path) -> None:
    """Also over a resumption."""
    path = tmp_path / "last.ckpt"

    class Lazy(toy.Toy):
        period = 4

    rows = toy.Rows()
    toy.fit(Lazy(text=toy.clip()), [Cost(), SaveLast(path=path, every=2)], batches=2)
    toy.fit(
        Lazy(text=toy.clip()), [Cost(), SaveLast(path=path, every=8)], batches=8, resume=path,
        loggers=[rows],
    )  # fmt: skip
    last = rows.having("cost/seconds")[-1]
    images = 8 * toy.BATCH
    assert last["cost/train_flops/painter"] == 2 * 2 * PIXELS * PIXELS * images
    assert last["cost/train_flops/judge"] == 2 * 2 * PIXELS * images
    assert last["cost/train_flops"] == 2 * (2 * PIXELS * PIXELS + 2 * PIXELS) * images
    assert "cost/train_flops/text" not in last, "it was not asked"
    for key in ("cost/parameters", "cost/trained_parameters"):
        parts = {k.rpartition("/")[2]: n for k, n in last.items() if k.startswith(f"{key}/")}
        assert sum(parts.values()) == last[key]
        assert parts["painter"] == PIXELS * (PIXELS + 1) + 2 * PIXELS
        assert ("text" in parts) is (key == "cost/parameters")


def test_an_older_checkpoint_has_operations_in_one_sum() -> None:
    first = Cost()
    model = toy.Toy()
    trainer = toy.fit(model, [first])
    state = first.state_dict()
    del state["by_part"]
    second = Cost()
    second.load_state_dict(state)
    second.sample_flops_per_image = first.sample_flops_per_image
    one, other = (callback.report(trainer, model) for callback in (first, second))
    apart = {key for key in one if key.startswith("cost/train_flops/")}
    assert apart
    assert {key: n for key, n in one.items() if key not in apart} == other


def test_telling_parts_apart_changes_no_weight() -> None:
    found = []
    for callbacks in ([], [Cost()]):
        model = toy.Toy()
        toy.fit(model, callbacks)
        found.append(model.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_only_training_takes_time(watch: toy.Watch) -> None:
    rows, callback = toy.Rows(), Cost()
    toy.fit(watch.model(), [callback], batches=6, loggers=[rows])
    told = rows.having("cost/seconds")
    assert [row["cost/seconds"] for row in told] == [2, 6, 10]  # the first batch is not timed
    assert {row["cost/images_per_second"] for row in told} == {toy.BATCH / 2}


def test_the_clock_goes_on_in_a_resumed_run(tmp_path: Path, watch: toy.Watch) -> None:
    path = tmp_path / "last.ckpt"
    toy.fit(watch.model(), [Cost(), SaveLast(path=path, every=4)], batches=4)
    rows, callback = toy.Rows(), Cost()
    again = [callback, SaveLast(path=path, every=4)]
    toy.fit(watch.model(), again, batches=8, resume=path, loggers=[rows])
    assert callback.seconds == 6 + 8  # the very first batch is counted, and not timed
    assert rows.having("cost/seconds")[-1]["cost/images_per_second"] == toy.BATCH / 2


def test_a_failing_batch_ends_the_count() -> None:
    counts: list[Any] = []
    callback = Cost()

    class Failing(toy.Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            counts.append(callback._count)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        toy.fit(Failing(), [callback])
    (count,) = counts
    before = count.total
    torch.ones(2, 2) @ torch.ones(2, 2)
    assert count.total == before
