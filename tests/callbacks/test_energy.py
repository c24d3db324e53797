"""Joules of training alone, over resumptions; no number where a part was not metered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from torch import Tensor

import metered
import toy
from salon import run
from salon.callbacks.energy import Energy
from salon.callbacks.save import SaveLast
from salon.metrics import energy
from salon.types import Batch


class Reading(energy.Counter):
    name = "nvml"

    def __init__(self) -> None:
        self.joules: float | None = 1000.0  # of what was before
        self.closed = False

    def read(self) -> float | None:
        return self.joules

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Reading:
    found = Reading()
    monkeypatch.setattr("salon.callbacks.energy.counter", lambda device, meter: found)
    return found


class Hungry(toy.Toy):
    """A batch takes 36 J, a validation batch 1000."""

    def __init__(self, meter: Reading, *, fail_at: int = -1) -> None:
        super().__init__()
        self.meter, self.fail = meter, fail_at

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.batches_seen == self.fail:
            raise RuntimeError("stopped")
        if self.meter.joules is not None:
            self.meter.joules += 36
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.meter.joules is not None:
            self.meter.joules += 1000


def made(intensity: float | None = None, grid: str | None = None) -> Energy:
    return Energy(meter="auto", intensity=intensity, grid=grid)


def test_training_alone_is_counted(meter: Reading) -> None:
    rows, callback = toy.Rows(), made(intensity=500, grid="Here 2020")

    class Saved(Hungry):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            callback.state_dict()  # a checkpoint may be written at any time

    trainer = toy.fit(Saved(meter), [callback], batches=6, loggers=[rows])
    told = rows.having("cost/energy_wh")
    assert [row["cost/energy_wh"] for row in told] == pytest.approx([0.02, 0.04, 0.06])
    assert told[-1]["cost/co2e_g"] == pytest.approx(0.06 / 1000 * 500)
    assert callback.remarks(trainer) == {
        "energy": {"meter": "nvml", "grid": "Here 2020", "grid_g_per_kwh": 500}
    }
    assert meter.closed


def test_without_a_grid_there_are_no_grams(meter: Reading) -> None:
    callback = made()
    trainer = toy.fit(Hungry(meter), [callback])
    assert callback.report(trainer, toy.Toy()).keys() == {"cost/energy_wh"}
    assert callback.remarks(trainer) == {"energy": {"meter": "nvml"}}


def test_where_nothing_meters_there_is_no_number() -> None:
    rows, callback = toy.Rows(), made(intensity=500, grid="Here 2020")
    trainer = toy.fit(toy.Toy(), [callback], loggers=[rows])
    assert not rows.having("cost/energy_wh")
    assert not rows.having("cost/co2e_g")
    assert callback.report(trainer, toy.Toy()) == callback.remarks(trainer) == {}


def test_it_goes_on_in_a_resumed_run(meter: Reading, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="stopped"):
        toy.fit(
            Hungry(meter, fail_at=5), [made(), SaveLast(path=path, every=3)],
            batches=8, validate_every=8,
        )  # fmt: skip
    assert meter.closed
    meter.joules = 0.0  # another machine
    callback = made()
    trainer = toy.fit(
        Hungry(meter), [callback, SaveLast(path=path, every=3)], batches=8, validate_every=8,
        resume=path,
    )  # fmt: skip
    # As of the checkpoint at batch 3: what was trained twice counts once.
    assert callback.report(trainer, toy.Toy())["cost/energy_wh"] == pytest.approx(8 * 0.01)


@pytest.mark.parametrize("before", ["without", "unmetered"])
def test_a_run_that_was_metered_in_part_has_no_number(
    before: str, meter: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr("salon.callbacks.energy.counter", lambda device, meter: None)
        first = [] if before == "without" else [made()]
        toy.fit(toy.Toy(), [*first, SaveLast(path=path, every=4)], batches=4)
    callback = made()
    trainer = toy.fit(Hungry(meter), [callback], batches=8, resume=path)
    assert callback.report(trainer, toy.Toy()) == {}


def test_a_meter_that_fails_on_the_way_leaves_no_number(meter: Reading) -> None:
    class Failing(Hungry):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            meter.joules = None if meter.joules is None else 0.0

    class Lost(Hungry):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            meter.joules = None if self.batches_seen == 1 else 5.0
            return super().training_step(batch, batch_idx)

    for model, number in ((Failing(meter), True), (Lost(meter), False)):
        callback = made()
        trainer = toy.fit(model, [callback])
        assert bool(callback.report(trainer, toy.Toy())) is number


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["callbacks.energy.meter=watts"], "expected one of auto, nvml"),
        (["callbacks.energy.intensity=300"], "need both"),
        (["callbacks.energy.meter=nvml"], "cpu has no counter"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    mini: Callable[..., DictConfig], tmp_path: Path, changes: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run.train(mini("gan_int_cls/tiny", *changes, "trainer.accelerator=cpu"), tmp_path)


def test_the_summary_has_it(
    mini: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: Any = metered.carbon(monkeypatch)
    quiet = ["callbacks.quality=null", "callbacks.samples=null"]
    asked = ["meter=codecarbon", "intensity=363", "grid=Germany 2024"]
    run.train(
        mini("gan_int_cls/tiny", *quiet, *(f"callbacks.energy.{one}" for one in asked)), tmp_path
    )
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["energy"] == {
        "meter": "codecarbon", "grid": "Germany 2024", "grid_g_per_kwh": 363.0,
    }  # fmt: skip
    wh = told["metrics"]["cost/energy_wh"]
    assert wh > 0
    assert told["metrics"]["cost/co2e_g"] == pytest.approx(wh / 1000 * 363)
    assert fake.running == 0
    (stage,) = told["stages"].values()
    assert stage["energy_wh"] is None, "a stage is not metered so: it has callbacks of its own"
    apart = {k: v for k, v in told["metrics"].items() if k.startswith("cost/train_flops/")}
    assert sum(apart.values()) == pytest.approx(told["metrics"]["cost/train_flops"], rel=1e-12)
    names = {name.rpartition("/")[2] for name in apart}
    assert names == {"text", "generator", "discriminator", "penalties"}
