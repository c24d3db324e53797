"""Joules by meters that only the test moves; never a zero for what was not measured."""

from __future__ import annotations

import pytest
import torch

import metered
from salon.metrics import energy
from salon.metrics.energy import Grid, Meter, check, counter, grid_of, used

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_a_board_is_read_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = metered.board(monkeypatch)
    fake.millijoules = 7_000
    with Meter(CUDA) as meter:
        assert meter.joules is None
        fake.millijoules = 19_500
    assert (meter.joules, meter.name) == (12.5, "nvml")
    assert set(fake.asked) == {"GPU-ab-1"}, "by its identity, whatever torch calls it"


def test_what_the_driver_refuses_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = metered.board(monkeypatch)
    fake.error = metered.NVMLError("not supported")
    with Meter(CUDA) as meter:
        pass
    assert (meter.joules, meter.name) == (None, None)
    with pytest.raises(ValueError, match=r"energy\.meter=nvml: the driver says: not supported"):
        counter(CUDA, "nvml")
    fake.error = None
    with Meter(CUDA) as meter:
        fake.error = metered.NVMLError("lost")
    assert meter.joules is None


def test_an_estimate_is_made_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = metered.carbon(monkeypatch)
    assert counter(CPU) is None
    assert fake.made == []
    with Meter(CPU, "codecarbon") as meter:
        pass
    assert meter.joules == pytest.approx(3600)  # the task between two readings
    assert meter.name == "codecarbon"
    assert fake.running == 0
    (options,) = fake.made
    assert options["save_to_file"] is options["save_to_api"] is False
    fake.kwh = None
    with Meter(CPU, "codecarbon") as meter:
        pass
    assert meter.joules is None


def test_what_is_asked_for_and_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cpu has no counter; for an estimate"):
        counter(CPU, "nvml")
    with pytest.raises(ValueError, match="'watts'; expected one of auto, nvml, codecarbon, none"):
        check("watts")
    monkeypatch.setattr(energy, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'salon\[energy\]'"):
        check("codecarbon")
    with pytest.raises(ValueError, match=r"pip install 'salon\[energy\]'"):
        counter(CUDA, "nvml")
    assert counter(CUDA) is None


def test_nothing_is_read_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = metered.board(monkeypatch)
    with Meter(CUDA, "none") as meter:
        pass
    assert (meter.joules, fake.asked) == (None, [])


def test_a_counter_that_begins_anew_measures_nothing() -> None:
    assert used(5.0, 7.0) == 2.0
    assert used(7.0, 7.0) == 0.0
    assert used(7.0, 5.0) is used(None, 5.0) is used(7.0, None) is None


def test_grams() -> None:
    grid = grid_of(363, "Germany 2024")
    assert grid == Grid("Germany 2024", 363.0)
    assert grid.grams(3.6e6) == 363.0  # a kWh
    assert grid_of(None, None) is None


@pytest.mark.parametrize(
    ("intensity", "name", "said"),
    [
        (363, None, "need both"),
        (363, "", "need both"),
        (None, "Germany 2024", "need both"),
        (-1, "Germany 2024", "0 or more"),
        (float("nan"), "Germany 2024", "0 or more"),
        ("much", "Germany 2024", "a number"),
    ],
)
def test_half_a_grid_is_refused(intensity: float | None, name: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grid_of(intensity, name)
