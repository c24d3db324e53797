"""What the jury found, as W&B runs of their own: an evaluation, and a report on several.

Everything is on the disk before, so that W&B can lose nothing: `keep` says what became of it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import wandb
from PIL.Image import Image

from salon import pictures
from salon.callbacks import artifacts
from salon.callbacks.artifacts import Weights
from salon.callbacks.wandb_run import WandbOnClock, kept_id, logged_in
from salon.jury.hearing import Sheet
from salon.jury.record import Number, Record
from salon.jury.report import collect, seeds_of, summary
from salon.metrics import oracle
from salon.metrics.oracle import Reading

PANEL = ("caption", "split", "seed", "image", "reading")
FILES = ("index.html", "leaderboard.csv", "leaderboard.md")
TOLD = (
    "label", "family", "seed", "checkpoint", "settings", "metrics", "mark", "failed", "cost",
)  # fmt: skip
RUN = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")  # a folder of W&B's


class Source(NamedTuple):
    """The checkpoint that was judged."""

    path: Path
    sha256: str
    training_run: str | None  # W&B's id of the run that trained it; None: not known


class Shown(NamedTuple):
    """A picture of the panel."""

    caption: str
    split: str
    seed: int
    image: Image
    reading: str | None  # None: the prompt has no exact description


def keep(make: Callable[[], WandbOnClock], fill: Callable[[WandbOnClock], None]) -> str:
    """Open a run, fill it and close it. Returns what became of it; failures are said, not raised.

    A run that is open already belongs to somebody else, and would be written into and closed.
    """
    try:
        if wandb.run is not None:
            raise RuntimeError(f"the run {wandb.run.id} is open; wandb.finish() closes it")
        logger, failed = make(), True
        try:
            fill(logger)
            failed = False
        finally:
            logger.close(failed=failed)
        return _became(logger.experiment)
    except Exception as error:
        return f"W&B: NOT logged ({type(error).__name__}: {error}); the files above are complete"


def _became(run: Any) -> str:
    if run.disabled:
        return "W&B: disabled, nothing was logged"
    if not run.offline:
        return f"W&B: {run.url}"
    why = "" if logged_in() else " (nobody is logged in)"
    folder = shlex.quote(str(Path(run.dir).parent))
    return f"W&B: offline{why}; upload later: wandb sync {folder}"


# -- an evaluation ---------------------------------------------------------------------------------


def training_run(folder: Path) -> str | None:
    """The id of the W&B run that trained in a run folder: as kept there, or the last begun."""
    found = [
        (match[1], path.stat().st_mtime_ns, match[2])
        for path in folder.glob("wandb/*")
        if (match := RUN.fullmatch(path.name))
    ]
    return kept_id(folder) or (max(found)[2] if found else None)


def config_of(record: Record, source: Source, asked: Mapping[str, Any]) -> dict[str, Any]:
    """`asked` is the evaluation's own config, resolved."""
    return {
        "label": record.label,
        "family": record.family,
        "seed": record.seed,
        "protocol": dict(record.protocol),
        "settings": dict(record.settings),
        "checkpoint": {**source._asdict(), "path": str(source.path.absolute())},
        "lineage": {
            "data": {"identity": record.protocol.get("data")},
            "stages": {},  # the training run's config tells them
            "checkpoint": Weights(source.path, source.sha256).told(),
        },
        "asked": dict(asked),
    }


def panel(sheets: Mapping[str, Sheet]) -> list[Shown]:
    """Every picture of the sheets; seed i for prompt i."""
    shown: list[Shown] = []
    for split, sheet in sheets.items():
        exact = "prompt_accuracy" in sheet.numbers
        read = [spelled(one) for one in oracle.read_all(sheet.images)] if exact else None
        for i, image in enumerate(pictures.to_pil(sheet.images)):
            shown.append(Shown(sheet.captions[i], split, i, image, read[i] if read else None))
    return shown


def spelled(reading: Reading) -> str:
    objects = [f"{one.size} {one.color} {one.shape} ({one.position})" for one in reading.objects]
    if reading.malformed:
        objects.append(f"{reading.malformed} malformed")
    return f"{', '.join(objects) or 'nothing'} on {reading.background or 'no known background'}"


def flat(metrics: Mapping[str, Mapping[str, Number]]) -> dict[str, float]:
    """By split and name, with the bounds of what has bounds."""
    told: dict[str, float] = {}
    for split, numbers in metrics.items():
        for name, number in numbers.items():
            parts = (("", number.value), ("_low", number.low), ("_high", number.high))
            told |= {f"{split}/{name}{part}": x for part, x in parts if x is not None}
    return told


def log_evaluation(
    logger: WandbOnClock, record: Record, shown: Sequence[Shown], source: Source
) -> None:
    """The numbers, which W&B also takes as the summary, and the panel, in one row."""
    table = wandb.Table(columns=list(PANEL))
    media: dict[str, list[wandb.Image]] = {}
    for one in shown:
        table.add_data(one.caption, one.split, one.seed, wandb.Image(one.image), one.reading)
        # Once more, since a table's pictures lie where a sync from another folder misses them.
        plain = wandb.Image(one.image, caption=f"{one.caption} (seed {one.seed})")
        media.setdefault(f"media/{one.split}", []).append(plain)
    seen = None if record.cost is None else record.cost.images
    clock = {} if seen is None else {"images_seen": seen}
    if not clock:
        _clockless(logger.experiment)
    logger.log_metrics({**clock, **flat(record.metrics), **media, "tables/panel": table})
    if logger.artifacts != "none":
        link(logger.experiment, source)


def link(run: Any, source: Source) -> None:
    """The checkpoint as what the run used: by reference, so that nothing large is uploaded."""
    if not run.disabled:
        told = {"training_run": source.training_run}
        weights = Weights(source.path, source.sha256)
        artifacts.use(run, artifacts.model(weights, upload=False, told=told))


def _clockless(run: Any) -> None:
    """Else W&B gives a row without `images_seen` a zero."""
    run.define_metric("*", step_metric=None, overwrite=True)


# -- a report --------------------------------------------------------------------------------------


def log_report(
    logger: WandbOnClock, records: Sequence[Record], folder: Path, *, title: str
) -> None:
    """The leaderboard as a table, and the files of the folder as an artifact."""
    _clockless(logger.experiment)
    logger.log_metrics({"tables/leaderboard": leaderboard(records)})
    if logger.artifacts == "none":
        return
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
    metadata = {
        "title": title,
        "protocol": dict(records[0].protocol),
        "records": [_told(record) for record in records],
    }
    artifact = wandb.Artifact(f"report-{slug}".strip("-"), "report", metadata=metadata)
    for name in FILES:
        artifact.add_file(str(folder / name))
    logger.experiment.log_artifact(artifact)


def _told(record: Record) -> dict[str, Any]:
    """A record without its pictures and series."""
    told = record._replace(wall=(), copies=None).to_json()
    return {name: told[name] for name in TOLD}


def leaderboard(records: Sequence[Record]) -> wandb.Table:
    """As leaderboard.md, a row for each label: means over seeds, with their bounds."""
    report = collect(records)
    columns = report.columns()
    names = [f"{split}/{name}{part}" for split, name in columns for part in ("", "_low", "_high")]
    table = wandb.Table(columns=["model", "family", "seeds", *names])
    for row in report.rows:
        means = [summary(row, *column) for column in columns]
        cells = [x for told in means for x in (told[:3] if told else (None, None, None))]
        table.add_data(row.name, row.family, seeds_of(row), *cells)
    return table
