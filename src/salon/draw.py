"""What `sample.py` does: a PNG for each prompt and seed, `grid.png`, and `samples.jsonl`.

Or, with `interpolate=N`, `interpolation.png` and a line of `samples.jsonl` for each picture in it;
or, with several checkpoints, the same prompts and seeds by each of them on `comparison.png`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig
from rich.progress import track

from salon import __version__, checkpoint, interpolate, pictures
from salon.config import to_plain
from salon.models.base import TextToImage, sample_in_batches

log = logging.getLogger(__name__)
JOURNEY, COMPARISON = "interpolation.png", "comparison.png"


def draw(cfg: DictConfig) -> Path:
    """Returns the folder. Raises ValueError for what a user can mend."""
    prompts = read_prompts(cfg.prompts)
    seeds = [int(seed) for seed in as_list(cfg.seeds)]
    if not seeds:
        raise ValueError("seeds=[] draws nothing; give at least one: seeds=[0]")
    journey = None
    if cfg.interpolate is not None:
        journey = Journey(interpolate.rows(prompts, seeds), interpolate.shares(cfg.interpolate))
    files = [checkpoint.find(given) for given in as_list(cfg.checkpoint)]
    if not files:
        raise ValueError("checkpoint=[] draws nothing; give at least one: checkpoint=runs/FOLDER")
    if journey is not None and len(files) > 1:
        raise ValueError(
            f"interpolate={cfg.interpolate} goes through one model, and checkpoint= names "
            f"{len(files)}; give one of them"
        )
    models = [load(file, cfg) for file in files]
    sources = [provenance(*pair, cfg) for pair in zip(models, files, strict=True)]
    out = Path(cfg.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={cfg.out!r} cannot be written ({error}); name another") from error

    model, made = models[0], sources[0]
    if len(models) > 1:
        rows = draw_comparison(models, prompts, seeds, out, sources, batch_size=cfg.batch_size)
    elif journey is None:
        rows = draw_each(model, prompts, seeds, out, made, batch_size=cfg.batch_size)
    else:
        rows = draw_journey(model, journey, out, made, batch_size=cfg.batch_size)
    with (out / "samples.jsonl").open("w") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return out


def draw_each(
    model: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    made: dict[str, Any],
    *,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Every prompt with every seed: a PNG each, and all of them on `grid.png`."""
    captions, repeated = crossed(prompts, seeds)
    rows: list[dict[str, Any]] = []
    drawn: list[torch.Tensor] = []
    pieces = sample_in_batches(model, captions, repeated, batch_size=batch_size)
    for images in track(pieces, "drawing", total=-(-len(captions) // batch_size)):
        drawn.append(images)
        for i, picture in enumerate(pictures.to_pil(images), len(rows)):
            told = {**made, "prompt": captions[i], "seed": repeated[i]}
            name = f"{i // len(seeds):04d}-{slug(captions[i])}-seed{repeated[i]}.png"
            pictures.save_png(picture, out / name, told)
            rows.append({"file": name, **told})
    # A prompt's seeds stand side by side, and about eight pictures in a row.
    columns = min(len(captions), len(seeds) * max(1, 8 // len(seeds)))
    sheet = pictures.grid(torch.cat(drawn), captions, columns=columns)
    pictures.save_png(sheet, out / "grid.png", made)
    log.info("%d pictures and grid.png are in %s", len(rows), out)
    return rows


def draw_comparison(
    models: Sequence[TextToImage],
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    sources: Sequence[dict[str, Any]],  # the provenance of each
    *,
    batch_size: int,
) -> list[dict[str, Any]]:
    """A row for each model, a column for each prompt with each seed."""
    captions, repeated = crossed(prompts, seeds)
    told: list[dict[str, Any]] = []
    rows: list[tuple[str, torch.Tensor]] = []
    for model, made in zip(track(models, "drawing"), sources, strict=True):
        pieces = sample_in_batches(model, captions, repeated, batch_size=batch_size)
        rows.append((f"{made['model']} {run_name(made['checkpoint'])}", torch.cat(list(pieces))))
        told += [
            {"file": COMPARISON, "row": len(rows) - 1, "column": i, **made, "prompt": c, "seed": s}
            for i, (c, s) in enumerate(zip(captions, repeated, strict=True))
        ]
    sheet = pictures.table(rows, captions)
    inside = {"models": json.dumps(sources), "seeds": json.dumps(repeated)}
    pictures.save_png(sheet, out / COMPARISON, inside)
    log.info("%d rows of %d pictures are %s", len(rows), len(captions), out / COMPARISON)
    return told


def run_name(file: str) -> str:
    """The run's folder, of a checkpoint in it."""
    folder, name = Path(file).parent, Path(file).stem
    return (folder.parent.name if folder.name == "checkpoints" else "") or name


def crossed(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """Every prompt with every seed: captions, and a seed for each."""
    return [prompt for prompt in prompts for _ in seeds], list(seeds) * len(prompts)


class Journey(NamedTuple):
    rows: list[interpolate.Row]
    shares: list[float]  # where the pictures of each row stand


def draw_journey(
    model: TextToImage, journey: Journey, out: Path, made: dict[str, Any], *, batch_size: int
) -> list[dict[str, Any]]:
    """The rows under each other on `interpolation.png`, with captions under their ends."""
    told: list[dict[str, Any]] = []
    drawn: list[torch.Tensor] = []
    captions: list[str] = []
    for row in track(journey.rows, "drawing"):
        drawn.append(interpolate.draw_row(model, row, journey.shares, batch_size=batch_size))
        start, stop = (f"{end.prompt}, seed {end.seed}" for end in row)
        captions += [start, *[""] * (len(journey.shares) - 2), stop]
        ends = {"prompts": [end.prompt for end in row], "seeds": [end.seed for end in row]}
        told += [{"file": JOURNEY, **made, **ends, "share": share} for share in journey.shares]
    sheet = pictures.grid(torch.cat(drawn), captions, columns=len(journey.shares))
    pictures.save_png(sheet, out / JOURNEY, {**made, "rows": json.dumps(journey.rows)})
    log.info("%d rows of %d pictures are %s", len(drawn), len(journey.shares), out / JOURNEY)
    return told


def as_list(given: Any) -> list[Any]:
    """`seeds=0` and `splits=test` mean lists of one."""
    return list(given) if isinstance(given, ListConfig | list | tuple) else [given]


def read_prompts(given: str | Sequence[str]) -> list[str]:
    """From a list, or from a file with one caption a line."""
    if isinstance(given, ListConfig | list | tuple):
        prompts = [str(prompt).strip() for prompt in given]
    else:
        path = Path(str(given))
        if not path.is_file():
            raise ValueError(
                f"prompts={given!r}: no such file; expected a list of captions or a text file with "
                "one a line: 'prompts=[a red circle above a blue square]'"
            )
        prompts = [line.strip() for line in path.read_text().splitlines()]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ValueError(
            f"prompts={given!r} holds no prompt; give at least one: "
            "'prompts=[a red circle above a blue square]'"
        )
    return prompts


def load(file: Path, cfg: DictConfig) -> TextToImage:
    model = checkpoint.load(file, ema=cfg.ema, device=checkpoint.device_of(cfg.device))
    if not isinstance(model, TextToImage):
        raise ValueError(
            f"checkpoint={str(file)!r} holds a {type(model).__name__}, a stage that draws no "
            "pictures; give a text-to-image run: checkpoint=runs/FOLDER"
        )
    given = {k: v for k, v in to_plain(cfg.settings).items() if v is not None}
    for key in given.keys() - model.settings.keys():
        raise ValueError(
            f"settings.{key}={given[key]}: a {type(model).__name__} has no such setting; it has "
            f"{', '.join(model.settings)}"
        )
    model.set_sampling(**given)
    return model


def provenance(model: TextToImage, file: Path, cfg: DictConfig) -> dict[str, Any]:
    return {
        "generated": "by a machine, with salon " + __version__,
        "model": type(model).__name__,
        "checkpoint": str(file),
        "checkpoint_sha256": checkpoint.digest(file),
        "settings": json.dumps({**model.settings, "ema": bool(cfg.ema)}),
    }


def slug(caption: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60]
