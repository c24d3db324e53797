"""What became of a multirun's jobs: a table, jobs.json, jobs.csv, and the exit code.

The exit code is 0 where every job is finished; 1 where one failed by a bug, or was killed; 2 where
all that failed did so by mistakes that the user can mend, as at every door; 130 and 143 where the
whole was stopped.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from salon import files, run
from salon.callbacks import wandb_run
from salon.multirun import plan, status
from salon.multirun.job import MISTAKES, line

KILLED = "its process ended without a word (killed, or out of memory?)"
COLOR = {status.FAILED: "red", status.INTERRUPTED: "yellow", status.NOT_RUN: "dim"}
WIDTH = 160  # of the table, where it is not printed on a terminal


class Row(NamedTuple):
    folder: str
    status: str
    objective: run.Value
    error: str | None
    mistake: bool
    seconds: float | None
    overrides: list[str]
    rerun: str


def go_on() -> str:
    """The end of the message that something was stopped."""
    made = plan.current()
    return "; go on with resume=RUN_FOLDER" if made is None else f"; go on with\n  {made.command}"


@contextlib.contextmanager
def concluded() -> Iterator[None]:
    """At the door: tells what became of a multirun's jobs; exits unless all is well."""
    stop: BaseException | None = None
    try:
        yield
    except plan.Refused as refused:
        raise refused.mistake from None
    except BaseException as error:
        stop = error
    made = plan.current()
    if stop is not None and (made is None or not _begun(made)):
        raise stop
    if made is None:  # one run
        return
    stopped = stop is not None and not isinstance(stop, Exception)
    if stop is not None and not stopped:
        wait(made)
    rows = told(made, stopped=stopped)
    write(made, rows)
    show(made, rows)
    if stop is not None:
        if stopped:
            raise stop
        _explain(stop)
        raise SystemExit(exit_code(rows) or (2 if isinstance(stop, MISTAKES) else 1))
    # A sweeper that decides as it goes forgives failures, or has raised.
    if made.jobs is not None and (code := exit_code(rows)):
        raise SystemExit(code)


def _begun(made: plan.Plan) -> bool:
    files = [job.folder / status.FILE for job in found(made)]
    return any(file.is_file() and _since(file, made) for file in files)


def _since(file: Path, made: plan.Plan) -> bool:
    return file.stat().st_mtime >= made.started


def found(made: plan.Plan) -> list[plan.Job]:
    """The jobs that were planned; else those that have begun since."""
    if made.jobs is not None:
        return made.jobs
    begun = []
    for path in (*made.folder.glob(f"*/{status.FILE}"), *made.folder.glob(f"*/*/{status.FILE}")):
        told = status.read(path.parent)
        if told is not None and _since(path, made):
            begun.append((told.started, plan.Job(path.parent, told.overrides)))
    return [job for _, job in sorted(begun, key=lambda one: one[0])]


def told(made: plan.Plan, *, stopped: bool) -> list[Row]:
    return [_row(made, job, stopped=stopped) for job in found(made)]


def _row(made: plan.Plan, job: plan.Job, *, stopped: bool) -> Row:
    said = status.read(job.folder)
    now, error = (status.NOT_RUN, None) if said is None else (said.status, said.error)
    if said is not None and said.status == status.RUNNING and not status.alive(said):
        lately = _since(job.folder / status.FILE, made)
        now, error = (
            (status.FAILED, KILLED) if lately and not stopped else (status.INTERRUPTED, None)
        )
    return Row(
        folder=str(job.folder),
        status=now,
        objective=said.objective if said else None,
        error=error,
        mistake=bool(said and said.mistake),
        seconds=said.seconds if said else None,
        overrides=job.overrides,
        rerun=plan.rerun(job.folder, job.overrides, made.searchpath),
    )


def wait(made: plan.Plan) -> None:
    """For the jobs on this machine, where a launcher gave up at the first that was killed."""
    while any(
        said.status == status.RUNNING and said.host == os.uname().nodename and status.alive(said)
        for job in found(made)
        if (said := status.read(job.folder)) is not None
    ):
        time.sleep(1)


def write(made: plan.Plan, rows: list[Row]) -> None:
    content = {"command": made.command, "jobs": [row._asdict() for row in rows]}
    files.write(made.folder / "jobs.json", json.dumps(content, indent=2))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(Row._fields)
    table.writerows((*row[:-2], " ".join(row.overrides), row.rerun) for row in rows)
    files.write(made.folder / "jobs.csv", text.getvalue())


def show(made: plan.Plan, rows: list[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=Text(str(made.folder)), title_justify="left")
    for name in ("job", "status", "objective", "error"):
        table.add_column(name, overflow="fold")
    for row in rows:
        told = row.objective if isinstance(row.objective, list | tuple) else [row.objective]
        value = ", ".join(f"{one:.6g}" for one in told if one is not None)
        name = os.path.relpath(row.folder, made.folder)
        cells = (name, row.status, value, (row.error or "")[:300])
        table.add_row(*(Text(cell) for cell in cells), style=COLOR.get(row.status))
    console.print()
    console.print(table)
    counts = Counter(row.status for row in rows)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    if upload := wandb_run.sync_command([Path(row.folder) for row in rows]):
        print(f"\nW&B, what is kept offline:\n  {upload}")
    for row in rows:
        if row.status == status.FAILED:
            print(
                f"\n{row.folder}/{status.ERROR} has the traceback. This job alone:\n  {row.rerun}"
            )
    if set(counts) & {status.FAILED, status.INTERRUPTED, status.NOT_RUN}:
        print(f"\nAll that is not finished:\n  {made.command}")
    sys.stdout.flush()


def exit_code(rows: list[Row]) -> int:
    missing = [row for row in rows if row.status not in status.DONE]
    if not missing:
        return 0
    return 2 if all(row.status == status.FAILED and row.mistake for row in missing) else 1


def _explain(stop: BaseException) -> None:
    """A launcher's own end, such as of a worker that was killed."""
    if os.environ.get("SALON_TRACEBACK"):
        traceback.print_exception(stop)
    print(f"error: {line(stop)}\n(SALON_TRACEBACK=1 shows where)", file=sys.stderr)
