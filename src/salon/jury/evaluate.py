"""`python -m salon.jury evaluate`: the protocol over splits -> metrics.json, grids, a table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from salon import checkpoint, draw, pictures
from salon.config import build
from salon.jury.protocol import judge

SHOWN = 16  # pictures in a split's grid


def evaluate(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Raises ValueError for what a user can mend."""
    file = checkpoint.find(cfg.checkpoint)
    model = draw.load(file, cfg)
    data = build(cfg.get("data") or model.recipe["run"]["data"], "data")
    if data.resolution != model.resolution:
        raise ValueError(
            f"data.resolution={data.resolution}: the model draws {model.resolution} px. Judge it "
            f"on its own data, which is the default, or say data.resolution={model.resolution}"
        )
    data.prepare_data()
    run = file.parent.parent if file.parent.name == checkpoint.LAST.parent.name else file.parent
    out = Path(cfg.out) if cfg.out else run / "jury"
    out.mkdir(parents=True, exist_ok=True)
    made = draw.provenance(model, file, cfg)
    told: dict[str, dict[str, float]] = {}
    for split in draw.as_list(cfg.splits):
        with Progress(transient=True) as progress:
            advance = partial(progress.advance, progress.add_task(split, total=cfg.images))
            told[split], images, shown = judge(
                model,
                data,
                split=split,
                number=cfg.images,
                batch_size=cfg.sampling_batch,
                make_distance=build(cfg.metrics, "metrics"),
                progress=advance,
            )
        captions = [prompt.caption for prompt in shown.prompts[:SHOWN]]
        sheet = pictures.grid(images[:SHOWN], captions, columns=8)
        pictures.save_png(sheet, out / f"{split}.png", made)
        told[split]["images"] = len(images)
    record = {
        "protocol": {
            "checkpoint": str(file),
            "checkpoint_sha256": made["checkpoint_sha256"],
            "model": type(model).__name__,
            "settings": model.settings,
            "ema": bool(cfg.ema),
            "data": data.identity,
            "images": cfg.images,
            "seeds": "i for prompt i",
        },
        "splits": told,
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2))
    Console().print(table(told))
    print(f"pictures: {' '.join(str(out / f'{split}.png') for split in told)}")
    return told


def table(told: dict[str, dict[str, float]]) -> Table:
    """Rows are numbers, columns are splits."""
    shown = Table(title="the jury", title_justify="left")
    shown.add_column("")
    for split in told:
        shown.add_column(split, justify="right")
    names = dict.fromkeys(name for numbers in told.values() for name in numbers)
    for name in names:
        values: list[Any] = [numbers.get(name) for numbers in told.values()]
        cells = [
            "" if v is None else f"{v:.3f}" if v != int(v) or v < 2 else f"{v:g}" for v in values
        ]
        shown.add_row(name.replace("prompt_accuracy/", "  "), *cells)
    return shown
