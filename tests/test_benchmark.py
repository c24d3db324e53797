"""A benchmark from its command to its report, in miniature."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from conftest import mini_overrides, nested
from test_run import door

JURY = nested(
    [
        "images=16", "splits=[test]", "sets=[seen]", "open=[]", "set_images=8", "train_images=24",
        "price={batch: 2, repeats: 1}", "batch_size=8", "wall=2", "vary={temperature: [0.5]}",
    ]
)  # fmt: skip


def test_a_benchmark_trains_judges_and_reports(mini_root: Path, tmp_path: Path) -> None:
    given = [
        one for one in mini_overrides("cvae/tiny", mini_root)
        if not one.startswith(("model", "budget="))
    ]  # fmt: skip
    command = [
        "train.py", "-m", "+benchmark=gan_vs_diffusion", "model=cvae,cvae/tiny", "seed=0,1", *given,
        "budget.images=16", "budget.validate_every=2", f"hydra.sweep.dir={tmp_path}/bench",
        f"hydra.callbacks.benchmark.jury={JURY}",
    ]  # fmt: skip
    done = door(*command)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-2000:]
    report = tmp_path / "bench" / "report"
    with (report / "leaderboard.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["family"] == "VAE"]
    assert sorted((row["label"], row["seed"]) for row in rows) == [
        ("cvae", "0"), ("cvae", "1"), ("cvae/tiny", "0"), ("cvae/tiny", "1"),
    ]  # fmt: skip
    page = (report / "index.html").read_text()
    assert "+benchmark=gan_vs_diffusion" in page
    assert "nearest caption" in page
    records = [
        json.loads((tmp_path / "bench" / "cvae" / f"seed_{i}" / "jury" / "record.json").read_text())
        for i in range(2)
    ]
    assert records[0]["cost"]["images"] == 16
    assert records[0]["protocol"] == records[1]["protocol"], "one tower judges both"
    assert records[0]["settings"] == records[1]["settings"]
    assert [one["settings"] for one in records[0]["sweep"]] == [{"temperature": 0.5}]
    # The same command again trains nothing and judges nothing, and reports the same.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bench").rglob("record.json")}
    again = door(*command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (report / "index.html").read_text() == page
