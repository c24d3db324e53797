"""`python -m salon.jury report`: records of many models -> leaderboard.csv, .md and index.html."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from salon import files
from salon.jury import page, record
from salon.jury.record import Record

USAGE = """\
usage: python -m salon.jury report FOLDER... [out=report] [title=TEXT] [logger=wandb]

Puts the record.json (and record-*.json) files that lie anywhere in the folders side by side:
leaderboard.csv, leaderboard.md and index.html, which opens from the disk and needs no network.
Records of different protocols are refused, with what differs. To make records:
python -m salon.jury evaluate checkpoint=RUN label=NAME

logger=wandb also makes the report a W&B run, offline without an account; logger.KEY=VALUE as in
conf/logger/wandb.yaml.
"""


class Written(NamedTuple):
    page: Path
    records: list[Record]
    title: str
    logger: list[str]  # the words of the command line that say where else it goes


def found_in(folders: Sequence[str]) -> list[Record]:
    """Raises ValueError where there is none, or one that cannot be read."""
    paths: list[Path] = []
    for folder in map(Path, folders):
        there = [folder] if folder.is_file() else sorted(folder.rglob("record*.json"))
        if not there:
            raise ValueError(
                f"{str(folder)!r} holds no record.json. Judge its runs first: "
                "python -m salon.jury evaluate checkpoint=RUN"
            )
        paths += there
    return [record.load(path) for path in dict.fromkeys(paths)]


def write(records: Sequence[Record], out: Path, *, title: str, command: str) -> Path:
    """The report's page. Raises ValueError where records do not belong together."""
    made = page.files(records, title=title, command=command)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        files.write(out / name, text)
    return out / "index.html"


def report(words: Sequence[str]) -> Written:
    folders = [word for word in words if "=" not in word]
    logger = [word for word in words if word.startswith(("logger=", "logger."))]
    given = dict(word.split("=", 1) for word in words if "=" in word and word not in logger)
    if not folders or "--help" in words or set(given) - {"out", "title"}:
        print(USAGE)
        sys.exit(0 if "--help" in words else 2)
    title = given.get("title", "Text to image, side by side")
    command = " ".join(["python -m salon.jury report", *words])
    out = Path(given.get("out", "report"))
    records = found_in(folders)
    page = write(records, out, title=title, command=command)
    print(page)
    return Written(page, records, title, logger)
