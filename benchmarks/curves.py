"""python benchmarks/curves.py LABEL=RUN[,RUN...] ... [--out curves.png]

Prompt accuracy of single-object validation prompts over the images that a run has seen, a color a
label and a line a run, from the metrics.csv of each run folder. Prints the same numbers as a table.
"""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

METRIC = "quality/prompt_accuracy/all/one"


def curve(run: Path) -> list[tuple[int, float]]:
    with (run / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(METRIC)]
    return [(int(float(row["images_seen"])), float(row[METRIC])) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN[,RUN...]")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    told = parser.parse_args()
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for number, word in enumerate(told.runs):
        label, _, runs = word.partition("=")
        for i, run in enumerate(runs.split(",")):
            points = curve(Path(run))
            print(f"{label:20s} " + "  ".join(f"{n // 1000}k {value:.2f}" for n, value in points))
            seen, values = zip((0, 0.0), *points, strict=True)
            axes.plot(
                seen, values, color=f"C{number}", marker=".", linewidth=1.3,
                alpha=1.0 if i == 0 else 0.55, label=label if i == 0 else None,
            )  # fmt: skip
    axes.set(
        xlabel="images seen", ylabel="single-object prompts obeyed", ylim=(0, 1), xlim=(0, None)
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(told.out, dpi=130, metadata={"Software": None})
    print(f"written: {told.out}")


if __name__ == "__main__":
    main()
