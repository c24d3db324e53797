"""What a run folder tells of its training: what it cost, and how good it was on the way."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from salon.jury.price import Price
from salon.jury.record import Cost, Point
from salon.metrics.energy import KWH


def costs(run: Path, asked: Price | None) -> Cost:
    """Of training, as the run's summary tells; of drawing, as it was measured now."""
    summary = run / "summary.json"
    told = json.loads(summary.read_text()) if summary.is_file() else {}
    numbers, stages = told.get("metrics", {}), told.get("stages") or {}
    flops = by_part(numbers, "cost/train_flops")
    if flops and stages and all(one and one["flops"] for one in stages.values()):
        flops["stages"] = sum(one["flops"] for one in stages.values())
    memory, energy = numbers.get("cost/peak_memory_mb"), told.get("energy") or {}
    trained = by_part(numbers, "cost/trained_parameters")
    cost = Cost(
        images=told.get("images_seen"),
        seconds=numbers.get("cost/seconds"),
        flops=flops,
        parameters=None if trained is None else {part: int(n) for part, n in trained.items()},
        peak_memory=None if memory is None else int(memory * 2**20),
        energy_wh=numbers.get("cost/energy_wh"),
        co2e_g=numbers.get("cost/co2e_g"),
        **{key: energy.get(key) for key in ("grid", "grid_g_per_kwh", "meter")},
    )
    if asked is None:
        return cost
    if asked.joules_per_image is not None:
        cost = cost._replace(
            sample_wh=asked.joules_per_image / KWH * 1000, sample_meter=asked.meter
        )
        if asked.grid is not None:
            cost = cost._replace(
                sample_co2e_g=asked.grid.grams(asked.joules_per_image),
                sample_grid=asked.grid.name,
                sample_grid_g_per_kwh=asked.grid.intensity,
            )
    return cost._replace(
        sample_flops=asked.flops,
        latency=asked.latency,
        largest_batch=asked.batch,
        latency_largest=asked.seconds_per_image,
        sample_parameters=asked.parameters,
    )


def by_part(numbers: dict[str, float], key: str) -> dict[str, float] | None:
    """A cost told apart, as `key/PART`; of an older run, which has it in one sum, as {"model"}."""
    apart = {k.removeprefix(f"{key}/"): n for k, n in numbers.items() if k.startswith(f"{key}/")}
    return apart or ({"model": numbers[key]} if key in numbers else None)


def curve(run: Path) -> tuple[Point, ...]:
    """Every validation of the run that measured quality."""
    path, found = run / "metrics.csv", []
    if not path.is_file():
        return ()
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            numbers = {
                name.removeprefix("quality/"): float(value)
                for name, value in row.items()
                if value and name.startswith("quality/") and name != "quality/images"
            }
            if numbers and row.get("images_seen"):
                seconds, flops = (row.get(f"cost/{name}") for name in ("seconds", "train_flops"))
                found.append(
                    Point(
                        int(row["images_seen"]),
                        float(seconds) if seconds else None,
                        float(flops) if flops else None,
                        numbers,
                    )
                )
    return tuple(found)
