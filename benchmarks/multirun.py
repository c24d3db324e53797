"""Jobs at a time against one after another, in wall time.

    python benchmarks/multirun.py [JOBS] [ROUNDS] [BATCHES]

The same small jobs by `hydra/launcher=processes hydra.launcher.n_jobs=2` and by the default
launcher, in turns; stages and data are made before. Both include what a command costs: imports,
composing, workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model=cvae/tiny", "logger=csv", "data.resolution=16", "data.window=20", "data.shard_size=100",
    "data.samples={train: 400, val: 32, test: 32, heldout: 32}", "data.val_samples=32",
    "callbacks.samples=null", "callbacks.quality=null", "batch_size=32",
    'text.overrides=["batch_size=8","budget.batches=2","budget.validate_every=2"]',
]  # fmt: skip
LAUNCHERS = {
    "one after another": ["hydra/launcher=basic"],
    "two at a time": ["hydra/launcher=processes", "hydra.launcher.n_jobs=2"],
}


def seconds(launcher: list[str], jobs: int, batches: int, root: Path, sweep: Path) -> float:
    """Wall time of a command that trains `jobs` jobs with as many learning rates."""
    each = f"batches: {batches}, validate_every: {batches}, checkpoint_every: {batches}"
    rates = ",".join(f"{1e-4 * (i + 1):g}" for i in range(jobs))
    places = [f"data.root={root}/data", f"stages_dir={root}/stages", f"hydra.sweep.dir={sweep}"]
    start = time.perf_counter()
    words = [*SMALL, f"budget={{{each}}}", *places, *launcher, f"model.optimizer.lr={rates}"]
    command = [sys.executable, "train.py", "-m", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - start


def main(jobs: int, rounds: int, batches: int) -> None:
    taken: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        seconds(LAUNCHERS["one after another"], 1, 2, root, root / "before")
        for i in range(rounds):
            for name, launcher in LAUNCHERS.items():
                taken[name].append(seconds(launcher, jobs, batches, root, root / f"{i}_{name[:3]}"))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    first = medians["one after another"]
    what = f"{jobs} jobs of {batches} batches, {rounds} rounds, {os.cpu_count()} cores"
    title = f"{what}: seconds of wall time"
    table = Table(title=title)
    for column in ("launcher", "median", "all", "speed-up"):
        table.add_column(column)
    for name, values in taken.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        table.add_row(name, f"{medians[name]:.1f}", each, f"{first / medians[name]:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("jobs", type=int, nargs="?", default=4)
    parser.add_argument("rounds", type=int, nargs="?", default=2)
    parser.add_argument("batches", type=int, nargs="?", default=1000)
    told = parser.parse_args()
    main(told.jobs, told.rounds, told.batches)
