"""python -m salon.search report FOLDER... [--wandb]"""

import sys
from pathlib import Path

from salon import doors
from salon.search import report

USAGE = """usage: python -m salon.search report FOLDER... [--wandb]

The trials of a search, finished or still running, as a table; index.html and study.csv in its
folder. FOLDER is that of a multirun with +sweep=..., such as multirun/tpe_df_gan. --wandb: also as
a W&B run, where the trials have theirs."""


def main() -> None:
    words = sys.argv[1:]
    if {"--help", "-h"} & set(words):
        print(USAGE)
        return
    folders = [Path(word) for word in words[1:] if not word.startswith("-")]
    flags = {word for word in words[1:] if word.startswith("-")}
    if words[:1] != ["report"] or not folders or flags - {"--wandb"}:
        print(USAGE)
        sys.exit(2)
    with doors.errors_for_people():
        for folder in folders:
            report.conclude(folder) if "--wandb" in words else report.write(folder)


if __name__ == "__main__":
    main()
