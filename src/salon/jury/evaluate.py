"""`python -m salon.jury evaluate`: a model before the jury -> metrics.json, record.json, grids."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from salon import checkpoint, draw, files, pictures, ranks
from salon.config import build, to_plain
from salon.jury import publish, report
from salon.jury.baselines import baselines
from salon.jury.features import FeatureStore
from salon.jury.hearing import Hearing, Sheet, pairs, wall
from salon.jury.price import price
from salon.jury.protocol import clip_of
from salon.jury.record import Number, Record, Scalar, Setting
from salon.jury.trained import costs, curve
from salon.metrics.energy import check, grid_of
from salon.metrics.extractor import Extractor
from salon.models.adversarial import Adversarial
from salon.models.base import TextToImage
from salon.models.latent_diffusion import LatentDiffusion
from salon.models.reader import Reader
from salon.shapes import prompts
from salon.text.clip import ClipTower

SHOWN = 16  # pictures in a split's grid
Told = dict[str, dict[str, Number]]


def evaluate(cfg: DictConfig) -> Told:
    """Leaves the generators of random numbers as they were.

    Raises ValueError for what a user can mend.
    """
    publish.asked(cfg)
    with ranks.together(), torch.random.fork_rng():
        return _evaluate(cfg)


def _evaluate(cfg: DictConfig) -> Told:
    check(cfg.energy.meter)
    grid_of(cfg.energy.intensity, cfg.energy.grid)
    file = checkpoint.find(cfg.checkpoint)
    model = draw.load(file, cfg)
    data = data_of(cfg, model)
    if data.resolution != model.resolution:
        raise ValueError(
            f"data.resolution={data.resolution}: the model draws {model.resolution} px. Judge it "
            f"on its own data, which is the default, or say data.resolution={model.resolution}"
        )
    for name in draw.as_list(cfg.sets):
        prompts.pools(str(name))  # says which there are
    data.prepare_data()
    run = run_of(file)
    out = Path(cfg.out) if cfg.out else run / "jury"
    out.mkdir(parents=True, exist_ok=True)
    made = draw.provenance(model, file, cfg)
    tower, reader = tower_of(cfg, model), reader_of(cfg, model)
    hearing = Hearing(
        model, identity=made["checkpoint_sha256"], ema=bool(cfg.ema), tower=tower,
        extractor=extractor_of(cfg, tower, reader), reader=reader,
        store=FeatureStore(cfg.features or out / "features"), batch_size=cfg.sampling_batch,
    )  # fmt: skip
    with bar() as progress:
        record, sheets = heard(cfg, hearing, data, run, out, made, progress)
    found = baselines(
        hearing, data, splits=[str(one) for one in draw.as_list(cfg.splits)], number=cfg.images,
        train=cfg.train_images or cfg.images, protocol=record.protocol, shown=cfg.wall,
    ) if cfg.baselines else []  # fmt: skip
    told = record.metrics
    if not ranks.first():
        return told
    files.write(out / "record.json", json.dumps(record.to_json()))
    for one in found:
        files.write(out / f"record-{draw.slug(one.label)}.json", json.dumps(one.to_json()))
    written = {
        "protocol": {
            **record.protocol,
            "checkpoint": str(file),
            "checkpoint_sha256": made["checkpoint_sha256"],
            "settings": model.settings,
            "seeds": "i for prompt i",
        },
        "splits": {split: plain(numbers) for split, numbers in told.items()},
        "intervals": {
            split: {name: number._asdict() for name, number in numbers.items()}
            for split, numbers in told.items()
        },
    }
    files.write(out / "metrics.json", json.dumps(written, indent=2))
    Console().print(table(told))
    print(f"pictures: {' '.join(str(out / f'{split}.png') for split in told)}")
    source = publish.source_of(file, made["checkpoint_sha256"], run, out)
    publish.evaluation(cfg, record, sheets, source, model.recipe["run"], out)
    return told


def tower_of(cfg: DictConfig, model: TextToImage) -> ClipTower:
    """The CLIP that judges."""
    if not cfg.tower:
        return clip_of(model)
    found = getattr(checkpoint.load(cfg.tower, device=model.device), "tower", None)
    if not isinstance(found, ClipTower):
        raise ValueError(
            f"tower={cfg.tower}: expected a run of model=clip/..., whose tower judges, such as a "
            "folder stages/clip-..."
        )
    return found


def reader_of(cfg: DictConfig, model: TextToImage) -> Reader | None:
    """The second opinion."""
    if not cfg.reader:
        return None
    found = checkpoint.load(cfg.reader, device=model.device)
    if not isinstance(found, Reader):
        raise ValueError(f"reader={cfg.reader}: expected a run of model=reader/tiny")
    return found


def extractor_of(cfg: DictConfig, tower: ClipTower, reader: Reader | None) -> Extractor:
    made = build(cfg.extractor, "extractor")
    if not isinstance(made, Extractor):
        given = {"tower": tower, "reader": reader}
        names = inspect.signature(made).parameters
        made = made(**{name: part for name, part in given.items() if name in names})
    return made.to(next(tower.parameters()).device)


def data_of(cfg: DictConfig, model: TextToImage) -> Any:
    """The data set that is named, or else the one that the model was trained on."""
    if cfg.get("data"):
        return build(cfg.data, "data")
    try:
        return build(model.recipe["run"]["data"], "data")
    except ValueError as error:
        raise ValueError(
            f"{error}. So the checkpoint says, which an earlier version may have written; name the "
            "data set with today's settings: data=shapes, or data=shards data.train=DIR"
        ) from error


def plain(numbers: dict[str, Number]) -> dict[str, float]:
    images = max((number.n or 0 for number in numbers.values()), default=0)
    return {**{name: number.value for name, number in numbers.items()}, "images": images}


def heard(
    cfg: DictConfig, hearing: Hearing, data: Any, run: Path, out: Path, made: dict[str, Any],
    progress: Progress,
) -> tuple[Record, dict[str, Sheet]]:  # fmt: skip
    """Everything that the config asks for, of one model, and what of it is shown."""
    told: Told = {}
    sheets: dict[str, Sheet] = {}
    hits: dict[str, list[int]] = {}
    copies, first = None, None
    train, train_features = training_pictures(cfg, hearing, data)
    for split in map(str, draw.as_list(cfg.splits)):
        with task(progress, split, cfg.images) as advance:
            sheet, found = hearing.split(data, split, cfg.images, train_features, advance)
        sheets[split] = show(sheet, out / f"{split}.png", made)
        told[split] = sheet.numbers
        if sheet.hits is not None:
            hits[split] = sheet.hits
        if first is None:
            first = sheet
            if train is not None:
                copies = pairs(sheet, found, train)
    for name in map(str, draw.as_list(cfg.sets)):
        with task(progress, name, cfg.set_images) as advance:
            sheet = hearing.set(name, cfg.set_images, cfg.world_seed, advance)
        sheets[name] = show(sheet, out / f"{name}.png", made)
        told[name] = sheet.numbers
    bias = []
    for attribute in map(str, draw.as_list(cfg.open)):
        with task(progress, f"open {attribute}", cfg.set_images) as advance:
            found_bias = hearing.bias(attribute, cfg.set_images, cfg.world_seed, advance)
        bias += [] if found_bias is None else [found_bias]
    assert first is not None, "at least one split"
    asked = price(
        hearing.model, first.captions, batch=min(cfg.price.batch, len(first.captions)),
        repeats=cfg.price.repeats, meter=cfg.energy.meter,
        grid=grid_of(cfg.energy.intensity, cfg.energy.grid),
    ) if cfg.price and ranks.first() else None  # fmt: skip
    record = Record(
        label=cfg.label or str(made["model"]),
        family=family_of(hearing.model),
        seed=hearing.model.recipe["run"].get("seed"),
        checkpoint="last",
        protocol=protocol(cfg, hearing, data),
        settings={**scalars(hearing.model.settings), "ema": bool(cfg.ema)},
        metrics=told,
        cost=costs(run, asked),
        curve=curve(run),
        sweep=swept(cfg, hearing, data, progress),
        wall=wall(first, cfg.wall),
        copies=copies,
        bias=tuple(bias),
        hits=hits or None,
    )
    return record, sheets


def training_pictures(
    cfg: DictConfig, hearing: Hearing, data: Any
) -> tuple[Tensor | None, Tensor | None]:
    """Among which copies are looked for, and their features."""
    if not cfg.train_images:
        return None, None
    batches = data.batches("train", -(-cfg.train_images // data.batch_size))
    images = torch.cat([batch.images for batch in batches])[: cfg.train_images]
    return images, hearing.real(data, "train", images)


def swept(cfg: DictConfig, hearing: Hearing, data: Any, progress: Progress) -> tuple[Setting, ...]:
    """The same checkpoint with each value of each setting that it has, the others as they are."""
    model, found = hearing.model, []
    before = dict(model.settings)
    for key, values in to_plain(cfg.vary or {}).items():
        for value in values if key in before else ():
            with task(progress, f"{key}={value}", cfg.vary_images) as advance:
                try:
                    model.set_sampling(**{key: value})
                    sheet, _ = hearing.split(
                        data, str(draw.as_list(cfg.splits)[0]), cfg.vary_images, None, advance
                    )
                    if ranks.first():
                        asked = price(model, sheet.captions, batch=1, repeats=3, meter="none")
                        numbers = {name: number.value for name, number in sheet.numbers.items()}
                        found.append(Setting({key: value}, numbers, asked.flops, asked.latency))
                finally:
                    model.set_sampling(**before)
    return tuple(found)


# -- what else a record holds --------------------------------------------------------------------


def protocol(cfg: DictConfig, hearing: Hearing, data: Any) -> dict[str, Scalar]:
    """What has to be equal where two records stand in one table."""
    return {
        "extractor": hearing.extractor.identity,
        "tower": checkpoint.digest_of(hearing.tower),
        "reader": None if hearing.reader is None else checkpoint.digest_of(hearing.reader),
        "data": data.identity,
        "resolution": data.resolution,
        "images": cfg.images,
        "set_images": cfg.set_images,
        "world_seed": cfg.world_seed,
        "train_images": cfg.train_images,
        "seeds": "i for prompt i",
        "torch": metadata.version("torch").partition("+")[0],
        "salon": metadata.version("salon"),
    }


def scalars(told: dict[str, Any]) -> dict[str, Scalar]:
    return {
        key: value if isinstance(value, Scalar) else json.dumps(value)
        for key, value in told.items()
    }


def family_of(model: TextToImage) -> str:
    if isinstance(model, Adversarial):
        return "GAN"
    return "diffusion" if isinstance(model, LatentDiffusion) else "VAE"


def run_of(file: Path) -> Path:
    """The run folder of a checkpoint."""
    return file.parent.parent if file.parent.name == checkpoint.LAST.parent.name else file.parent


# -- on the terminal -----------------------------------------------------------------------------


def bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), transient=True, disable=not ranks.first())


@contextlib.contextmanager
def task(progress: Progress, name: str, total: int) -> Iterator[Any]:
    number = progress.add_task(name, total=total)
    try:
        yield lambda done: progress.advance(number, done)
    finally:
        progress.remove_task(number)


def show(sheet: Sheet, path: Path, made: dict[str, Any]) -> Sheet:
    """Returns what is on the grid, without the memory of the rest."""
    shown = Sheet(sheet.images[:SHOWN].clone(), sheet.captions[:SHOWN], sheet.numbers)
    if ranks.first():
        grid = pictures.grid(shown.images, shown.captions, columns=8)
        pictures.save_png(grid, path, made)
    return shown


def table(told: Told) -> Table:
    """Rows are numbers, columns are splits and sets of prompts."""
    shown = Table(
        title="the jury (± half of a 95 % interval)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("", no_wrap=True)
    for split in told:
        words = split.split("_")
        shown.add_column(" ".join(words), justify="right", min_width=max(map(len, words)))
    for name in ordered({name for numbers in told.values() for name in numbers}):
        cells = [said(name, numbers.get(name)) for numbers in told.values()]
        shown.add_row(name.replace("prompt_accuracy/", "  "), *cells)
    return shown


def ordered(names: set[str]) -> Sequence[str]:
    """What was asked for first, then the rest."""
    return sorted(names, key=lambda name: (not name.startswith("prompt_accuracy"), name))


def said(name: str, number: Number | None) -> str:
    if number is None:
        return ""
    if number.low is None or number.high is None:
        return report.show(name, number.value)
    return f"{report.show(name, number.value)} ±{report.show(name, (number.high - number.low) / 2)}"
