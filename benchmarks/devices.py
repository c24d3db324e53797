"""python benchmarks/devices.py [--batches N] [--rounds N] [KEY=VALUE ...]

Two processes (trainer=ddp, CPU, one thread each) beside one: pictures a second of training steps,
as cost/images_per_second has them, in turns. Perfect would be 2.00 on two idle cores; the rest is
gradients on their way, and a batch that waits for the slower process. KEY=VALUE are settings of
train.py. README.md beside this file has results.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SHORT = "['budget.batches=2','budget.validate_every=2','gate=null']"
ONE = ["trainer=cpu"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


def rate(words: list[str], folder: Path) -> float:
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"hydra.run.dir={folder}"], cwd=ROOT,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    told = json.loads((folder / "summary.json").read_text())
    return float(told["metrics"]["cost/images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    options, given = parser.parse_known_args()
    found: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as root:
        shared = [
            "data.samples={train: 4000, val: 512, test: 1, heldout: 1}", "data.shard_size=500",
            f"data.root={root}/data", f"stages_dir={root}/stages", "logger=csv",
            f"text.overrides={SHORT}", f"model.autoencoder.overrides={SHORT}",
            "callbacks.samples=null", "callbacks.quality=null",
            f"budget={{batches: {options.batches}, validate_every: {options.batches}}}", *given,
        ]  # fmt: skip
        for i in range(options.rounds + 1):  # the first trains the stages
            for kept, words in zip(found, (ONE, TWO), strict=True):
                seen = rate([*shared, *words], Path(root) / f"{i}_{len(words)}")
                if i > 0:
                    kept.append(seen)
    one, two = map(statistics.median, found)
    table = Table(
        title=f"{options.rounds} rounds of {options.batches} batches, {os.cpu_count()} cores"
    )
    for column in ("processes", "pictures/s", "all", "ratio", "efficiency"):
        table.add_column(column, justify="right")
    for count, median, kept in ((1, one, found[0]), (2, two, found[1])):
        rounds = ", ".join(f"{value:.1f}" for value in kept)
        ratio = median / one
        table.add_row(str(count), f"{median:.1f}", rounds, f"{ratio:.2f}", f"{ratio / count:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
