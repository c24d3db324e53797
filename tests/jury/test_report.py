"""Records and their tables."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest

from made_up import PROTOCOL, benchmark, run, share
from salon.jury.record import Cost, Number, Record, load
from salon.jury.report import (
    collect,
    equal_budgets,
    leaderboard_csv,
    leaderboard_md,
    summarize,
    summary,
)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_record_survives_json(tmp_path: Path) -> None:
    for record in benchmark():
        file = tmp_path / "record.json"
        file.write_text(json.dumps(record.to_json(), allow_nan=False))
        assert load(file) == record


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("family",), "flow", "family='flow'"),
        (("mark",), "floor", "mark='floor'"),
        (("metrics", "test", "fd", "value"), math.nan, r"metrics\.test\.fd\.value=nan"),
        (("metrics", "test", "fd", "low"), 1e9, "lies above high"),
        (("cost", "energy"), 0.0, r"unknown \['energy'\]"),
        (("wall", 0, "png"), "PHN2Zz4=", r"wall\[0\]\.png is not a PNG"),
        (("wall", 0, "png"), "?", r"wall\[0\]\.png is not base64"),
    ],
)
def test_a_broken_record_says_where(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    told = run("df_gan", 0).to_json()
    at = told
    for key in path[:-1]:
        at = at[key]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        Record.from_json(told)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (PROTOCOL | {"n_real": 1000}, "protocol: n_real is 2000 in .*seed 0 and 1000 in .*seed 1"),
        ({k: v for k, v in PROTOCOL.items() if k != "tower"}, r"tower is .* '\(absent\)' in"),
        (PROTOCOL | {"more": None}, r"more is '\(absent\)' in .* and None in"),
        (PROTOCOL | {"ema": 1}, "ema is True in .* and 1 in"),
    ],
)
def test_records_of_two_protocols_are_refused(other: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect([run("df_gan", 0), run("cvae", 1)._replace(protocol=other)])


def test_seeds_of_a_label_have_its_settings_and_are_each_there_once() -> None:
    one = run("latent_diffusion", 0)
    with pytest.raises(ValueError, match=r"settings: steps is 30 in .* and 8 in"):
        collect([one, run("latent_diffusion", 1)._replace(settings={**one.settings, "steps": 8})])
    with pytest.raises(ValueError, match=r"family is 'diffusion' in .* and 'GAN' in"):
        collect([one, run("latent_diffusion", 1)._replace(family="GAN")])
    with pytest.raises(ValueError, match="latent_diffusion, last, seed 0: seed 0 is there twice"):
        collect([one, one])
    with pytest.raises(ValueError, match="at least one"):
        collect([])
    both = collect([one, one._replace(checkpoint="best", settings={"steps": 8})])
    assert [row.name for row in both.rows] == ["latent_diffusion (best)", "latent_diffusion (last)"]


def test_the_interval_over_seeds_is_students() -> None:
    told = summarize("fd", [(0, Number(1.0)), (1, Number(2.0)), (2, Number(6.0))])
    assert told is not None
    half = 4.302653 * statistics.stdev([1, 2, 6]) / math.sqrt(3)  # t of 2 degrees at 0.975
    assert told.mean == pytest.approx(3.0)
    assert (told.low, told.high) == pytest.approx((3 - half, 3 + half), rel=1e-5)
    bounded = summarize("prompt_accuracy/shape", [(0, Number(0.9)), (1, Number(1.0))])
    assert bounded is not None
    assert bounded.low is not None
    assert 0 < bounded.low < 0.4
    assert bounded.high == 1.0
    single = summarize("fd", [(0, Number(1.0, 0.5, 1.25))])
    assert single is not None
    assert single[:3] == (1.0, 0.5, 1.25)


def test_failed_runs_are_counted() -> None:
    report = collect(benchmark(seeds=3))
    row = next(row for row in report.rows if row.label == "attngan")
    told = summary(row, "test", "prompt_accuracy")
    assert told is not None
    assert [seed for seed, _ in told.seeds] == [0, 1]
    assert "| attngan | GAN | 2 of 3 |" in leaderboard_md(report)
    [lost] = [line for line in rows_of(leaderboard_csv(benchmark())) if line["failed"]]
    assert (lost["label"], lost["seed"], lost["test/fd"]) == ("attngan", "2", "")


def test_models_stand_by_the_first_metric_and_above_the_baselines() -> None:
    report = collect(benchmark()[::-1])
    accuracy = [summary(row, "test", "prompt_accuracy") for row in report.models]
    means = [told.mean for told in accuracy if told is not None]
    assert means == sorted(means, reverse=True)
    assert [row.family == "baseline" for row in report.rows] == [False] * 6 + [True] * 4
    assert report.columns()[:3] == [
        ("test", "prompt_accuracy"),
        ("heldout", "prompt_accuracy"),
        ("test", "malformed"),
    ]
    chance, ceiling = report.marked("chance"), report.marked("ceiling")
    assert chance is not None
    assert ceiling is not None
    assert (chance.label, ceiling.label) == ("shuffled captions", "real against real")


def test_csv_has_every_number_and_its_bounds() -> None:
    records = benchmark()
    lines = rows_of(leaderboard_csv(records))
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        assert line["label"] == record.label
        for split, numbers in record.metrics.items():
            for name, number in numbers.items():
                assert float(line[f"{split}/{name}"]) == number.value
                for part in ("low", "high"):
                    told, known = line[f"{split}/{name}_{part}"], getattr(number, part)
                    assert told == ("" if known is None else str(known))
    cvae = next(line for line in lines if line["label"] == "cvae")
    assert cvae["cost/energy_wh"] == ""  # not measured is no zero
    assert float(cvae["cost/flops"]) == pytest.approx(1.2e14)
    assert float(cvae["cost/flops_stages"]) == pytest.approx(2e13)
    assert lines[0]["cost/energy_wh"] == "14.2"


def test_md_is_a_table() -> None:
    odd = run("df_gan", 0)._replace(label="a|b <i>")
    text = leaderboard_md(collect([odd, run("cvae", 0)]))
    lines = text.splitlines()
    pipes = [line.replace("\\|", "").count("|") for line in lines]
    assert len(lines) == 4
    assert len(set(pipes)) == 1
    assert "a\\|b &lt;i>" in text
    told = odd.metrics["test"]["prompt_accuracy"]
    assert f"| {told.value:.3f} [{told.low:.3f}, {told.high:.3f}] |" in text


def test_equal_budgets_are_what_the_thriftiest_run_spent() -> None:
    slow, fast = run("latent_diffusion", 0), run("cvae", 0)
    fast = fast._replace(curve=fast.curve[:3])
    report = collect([slow, fast])
    budgets = {one.axis: one for one in equal_budgets(report, "prompt_accuracy")}
    assert list(budgets) == ["images_seen", "flops", "seconds"]
    spent = fast.curve[-1]
    assert budgets["flops"].spent == spent.flops
    within = [p for p in slow.curve if p.flops is not None and p.flops <= (spent.flops or 0)]
    told = budgets["flops"].values["latent_diffusion"].mean
    assert told == within[-1].metrics["prompt_accuracy"]
    assert told < slow.curve[-1].metrics["prompt_accuracy"]
    assert not equal_budgets(collect([slow, fast._replace(curve=())]), "prompt_accuracy")


def test_runs_of_equal_seconds_are_compared_at_their_ends() -> None:
    """They end between two batches: at 299.3 s and 300 s."""
    first, second = run("latent_diffusion", 0), run("cvae", 0)
    first, second = (
        one._replace(curve=(*one.curve[:3], one.curve[3]._replace(seconds=seconds)))
        for one, seconds in ((first, 300.0), (second, 299.3))
    )
    [found] = [
        one
        for one in equal_budgets(collect([first, second]), "prompt_accuracy")
        if one.axis == "seconds"
    ]
    assert found.spent == 299.3
    for one in (first, second):
        last = one.curve[-1].metrics["prompt_accuracy"]
        assert found.values[one.label].mean == last


def test_a_report_needs_little() -> None:
    bare = Record(
        "only", "VAE", 0, "last", {}, {}, {"test": {"new": share(0.5)}}, cost=Cost(flops={})
    )
    report = collect([bare])
    assert report.columns() == []
    assert "only" in leaderboard_md(report)
    [line] = rows_of(leaderboard_csv([bare]))
    assert line["test/new"] == "0.5"
    assert line["cost/flops"] == ""
