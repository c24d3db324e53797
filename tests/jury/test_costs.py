"""What a run's summary and the price of drawing say, in the record and in the report's table."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from made_up import run
from salon.jury.price import Price
from salon.jury.record import Cost, Record
from salon.jury.report import collect, leaderboard_csv
from salon.jury.tables import costs as costs_table
from salon.jury.trained import costs
from salon.metrics.energy import Grid

METRICS = {
    "cost/seconds": 10.0, "cost/train_flops": 100.0, "cost/train_flops/generator": 30.0,
    "cost/train_flops/discriminator": 60.0, "cost/train_flops/penalties": 10.0,
    "cost/trained_parameters": 7, "cost/trained_parameters/generator": 3,
    "cost/trained_parameters/discriminator": 4, "cost/parameters": 12, "cost/parameters/text": 5,
}  # fmt: skip
STAGES = {"text": {"seconds": 1.0, "flops": 20.0, "images": 8}}
PRICE = Price(
    latency=0.1, latency_p95=0.1, batch=2, seconds_per_image=0.05, flops=9.0, parameters=8,
    peak_memory_mb=None, joules_per_image=None, meter=None, grid=None, device="cpu", threads=1,
)  # fmt: skip


def told(folder: Path, asked: Price | None = None, **summary: Any) -> Cost:
    given = {"images_seen": 8, "metrics": METRICS, "stages": STAGES, **summary}
    (folder / "summary.json").write_text(json.dumps(given))
    return costs(folder, asked)


def test_parts_stand_beside_stages_and_add_up(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found.flops == {
        "generator": 30, "discriminator": 60, "penalties": 10, "stages": 20,
    }  # fmt: skip
    assert found.parameters == {"generator": 3, "discriminator": 4}


def test_a_summary_without_parts_counts_once(tmp_path: Path) -> None:
    plain = {key: n for key, n in METRICS.items() if key.count("/") == 1}
    found = told(tmp_path, metrics=plain)
    assert (found.flops, found.parameters) == ({"model": 100, "stages": 20}, {"model": 7})
    assert told(tmp_path, metrics={}, stages={}).flops is None


@pytest.mark.parametrize("apart", [True, False])
def test_the_leaderboard_sums_what_was_spent(apart: bool, tmp_path: Path) -> None:
    metrics = METRICS if apart else {k: n for k, n in METRICS.items() if k.count("/") == 1}
    record = run("df_gan", 0)._replace(cost=told(tmp_path, PRICE, metrics=metrics))
    (line,) = csv.DictReader(io.StringIO(leaderboard_csv([record])))
    assert float(line["cost/flops"]) == 120
    assert float(line["cost/parameters"]) == 7, "what draws is no further part"
    assert float(line["cost/sample_parameters"]) == 8
    page = str(costs_table(collect([record])))
    assert "120 FLOP" in page
    assert ("penalties 10 FLOP" in page) is apart


def test_energy_and_its_grid(tmp_path: Path) -> None:
    found = told(
        tmp_path, PRICE._replace(joules_per_image=7.2, meter="nvml", grid=Grid("There", 500)),
        metrics={"cost/energy_wh": 2.0, "cost/co2e_g": 0.6},
        energy={"meter": "codecarbon", "grid": "Here 2020", "grid_g_per_kwh": 300.0},
    )  # fmt: skip
    assert (found.energy_wh, found.co2e_g, found.meter) == (2, 0.6, "codecarbon")
    assert (found.grid, found.grid_g_per_kwh) == ("Here 2020", 300)
    assert (found.sample_wh, found.sample_meter) == (pytest.approx(0.002), "nvml")
    assert found.sample_co2e_g == pytest.approx(0.001)
    assert (found.sample_grid, found.sample_grid_g_per_kwh) == ("There", 500)
    page = str(costs_table(collect([run("df_gan", 0)._replace(cost=found)])))
    for words in ("2 Wh", "estimated by codecarbon", "0.6 g", "Here 2020, 300 g/kWh", "2 mWh",
                  "1 mg", "There, 500 g/kWh", "the GPU&#x27;s counter"):  # fmt: skip
        assert words in page or words.replace("&#x27;", "'") in page, words


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    found = told(tmp_path, PRICE)
    assert found.energy_wh is found.co2e_g is found.grid is found.meter is None
    assert found.sample_wh is found.sample_co2e_g is None
    page = str(costs_table(collect([run("df_gan", 0)._replace(cost=found)])))
    assert page.count("not measured") == 5  # memory; energy and CO2e, of both
    assert "Energy was measured in no run." in page
    # Energy without a grid: no grams.
    found = told(tmp_path, PRICE._replace(joules_per_image=7.2, meter="nvml"))
    assert (found.sample_wh, found.sample_co2e_g) == (pytest.approx(0.002), None)


def test_an_older_record_does_not_count_what_draws_twice() -> None:
    record = run("df_gan", 0)
    assert record.cost is not None
    before = record._replace(cost=record.cost._replace(parameters={"model": 7, "drawing": 8}))
    after = Record.from_json(before.to_json())
    assert after.cost is not None
    assert (after.cost.parameters, after.cost.sample_parameters) == ({"model": 7}, 8)
