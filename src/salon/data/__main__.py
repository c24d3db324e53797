"""python -m salon.data check|convert|precompute --help"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, open_dict
from rich.console import Console

from salon import checkpoint, checks, doors, precompute, run, stages
from salon.config import build
from salon.data.check import check, table
from salon.data.convert import base, sources
from salon.data.settings import number

SHARD = 1000  # samples in a converted shard, where nothing else is said


@hydra.main(version_base="1.3", config_path=str(doors.CONF), config_name="check")
def look(cfg: DictConfig) -> None:
    if cfg.shards is not None:
        cfg.data.train = cfg.data.val = list(cfg.shards)
    data = build(cfg.data, "data")
    data.prepare_data()
    split = cfg.split if cfg.shards is None else "train"
    if not check(data, split=split, decode=cfg.decode, out=Path(cfg.out)):
        sys.exit(1)


def run_check(words: list[str]) -> None:
    shards = [word for word in words if "=" not in word and not word.startswith("-")]
    rest = [word for word in words if word not in shards]
    if shards:  # as json, since a path may hold what Hydra reads as its own grammar
        rest.append(f"shards={json.dumps(shards)}")
    sys.argv[1:] = rest
    look()


@hydra.main(version_base="1.3", config_path=str(doors.CONF), config_name="precompute")
def compute(cfg: DictConfig) -> None:
    settings = cfg.precompute
    with open_dict(cfg):
        del cfg["precompute"]
    checks.check(cfg)
    number("precompute.batch_size", settings.batch_size, least=1, whole=True)
    if cfg.resume is not None:
        raise ValueError(f"resume={cfg.resume}: precompute goes on by itself; leave it out")
    data = build(cfg.data, "data")
    data.check_squares("precompute")  # before stages are trained, which may take hours
    data.prepare_data()
    model = run.make_model(cfg, stages.parts(cfg, data.identity, run.train), data.identity)
    folder, tally = precompute.write(
        model, data, batch_size=settings.batch_size, workers=cfg.data.workers,
        device=checkpoint.device_of(settings.device),
    )  # fmt: skip
    if tally.dropped:
        Console().print(table(tally, sorted(tally.report()["sources"])))
    print(f"{tally.used.total():,} samples in {folder}")
    print("train on them with the same settings: python train.py ... data.precomputed=true")


def run_precompute(words: list[str]) -> None:
    sys.argv[1:] = words
    compute()


CONVERT = """\
usage: python -m salon.data convert SOURCE FOLDER OUT [SETTING=VALUE ...]

Makes LAION-style shards, OUT/train/00000.tar and so on, of a data set that lies in FOLDER. What an
interrupted run has finished is kept. Settings of every source: shard_size (1000), splits (all).
"""


def convert_help() -> str:
    told = [CONVERT]
    for name, settings in sources.SETTINGS.items():
        told.append(f"{name}")
        told += [f"    {f'{key}={s.default}':<28} {s.help}" for key, s in settings.items()]
    return "\n".join(told)


def run_convert(words: list[str]) -> None:
    plain = [word for word in words if "=" not in word]
    if "--help" in words or len(plain) != 3:
        print(convert_help())
        sys.exit(0 if "--help" in words else 2)
    name, folder, out = plain
    given = dict(word.split("=", 1) for word in words if "=" in word)
    shard_size = parsed("shard_size", given.pop("shard_size", str(SHARD)), int)
    splits = given.pop("splits", None)
    known = sources.SETTINGS.get(name, {})
    settings = {k: parsed(k, v, known[k].kind) if k in known else v for k, v in given.items()}
    source = sources.source(name, Path(folder), settings)
    chosen = None if splits is None else splits.strip("[]").split(",")
    written = base.convert(source, Path(out), shard_size=shard_size, splits=chosen)
    failed = base.failures(Path(out))
    for split, samples in written.items():
        lost = sum(failed.get(split, {}).values())
        print(f"{split}: {samples:,} samples" + (f", {lost:,} could not be read" * bool(lost)))
    print(f"train on them: python train.py data=shards data.train={out}/train data.val={out}/val")


def parsed(key: str, text: str, kind: Callable[[str], Any]) -> Any:
    """Raises ValueError that names the setting."""
    if text in ("null", "None", "none"):
        return None
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{key}={text!r}: expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{key}={text!r}: expected a {kind.__name__}") from error


def main() -> None:
    run_by = {"check": run_check, "convert": run_convert, "precompute": run_precompute}
    if sys.argv[1:2] == [] or sys.argv[1] not in run_by:
        print(
            "usage: python -m salon.data check SHARDS... [KEY=VALUE ...]\n"
            "       python -m salon.data convert SOURCE FOLDER OUT [SETTING=VALUE ...]\n"
            "       python -m salon.data precompute [KEY=VALUE ...]\n"
            "Each tells more with --help."
        )
        sys.exit(0 if sys.argv[1:2] == ["--help"] else 2)
    kept = "" if sys.argv[1] == "check" else "; the same command goes on with what is missing"
    with doors.errors_for_people(lambda: kept):
        run_by[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    main()
