"""What drawing costs: by formula, timed apart from the first calls, never a made-up zero."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import metered
import toy
from salon.jury import price as module
from salon.jury.price import price
from salon.metrics.energy import Grid, Meter

PIXELS = 3 * toy.SIDE**2


class Clocked(toy.Toy):
    """The first two calls take 10 s, then one takes 1 s and a further second for each picture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def sample(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.calls += 1
        self.now += 10 if self.calls % 7 in (1, 2) else 1 + len(captions)
        return super().sample(captions, seeds)


def test_the_first_calls_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = price(Clocked(monkeypatch), toy.CAPTIONS, batch=4, repeats=5)
    assert (told.latency, told.latency_p95) == (2, 2)
    assert (told.batch, told.seconds_per_image) == (4, 5 / 4)


def test_operations_and_parameters_are_of_what_draws() -> None:
    """The toy's judge, which training needs, is in neither."""
    model = toy.Toy()
    told = price(model, toy.CAPTIONS, batch=2, repeats=1)
    assert told.flops == 2 * PIXELS * PIXELS
    used = [*model.painter.parameters(), *model.text.parameters()]
    assert told.parameters == sum(p.numel() for p in used)
    assert told.parameters < sum(p.numel() for p in model.parameters())


def test_the_text_tower_is_counted_although_it_remembers() -> None:
    model = toy.Toy(text=toy.clip())
    model.sample(toy.CAPTIONS, range(4))
    told = price(model, toy.CAPTIONS, batch=2, repeats=1)
    assert told.flops > 2 * PIXELS * PIXELS
    assert price(model, toy.CAPTIONS, batch=2, repeats=1).flops == told.flops


def test_what_nothing_measures_is_none() -> None:
    told = price(toy.Toy(), toy.CAPTIONS, batch=2, repeats=1)
    assert (told.peak_memory_mb, told.joules_per_image, told.device) == (None, None, "cpu")


def test_too_few_captions_are_said() -> None:
    with pytest.raises(ValueError, match="4 captions for a batch of 5"):
        price(toy.Toy(), toy.CAPTIONS, batch=5, repeats=1)


def test_energy_goes_by_its_meter_and_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    metered.board(monkeypatch, step=30_000)  # of each reading, in millijoules
    monkeypatch.setattr(toy.Toy, "device", torch.device("cpu"))
    monkeypatch.setattr(module, "Meter", lambda device, meter: Meter(torch.device("cuda"), meter))
    told = price(toy.Toy(), toy.CAPTIONS, batch=2, repeats=1, meter="nvml", grid=Grid("Here", 360))
    assert told.joules_per_image == 30 / (2 * 3)  # two calls of two pictures are not timed
    assert (told.meter, told.grid) == ("nvml", Grid("Here", 360))
