"""Several processes of one machine: how they are started, what they share, how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from salon import ranks


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_makes_every_piece_in_order() -> None:
    made = list(ranks.spread(lambda i: torch.tensor([i]), 5))
    assert [int(piece) for piece in made] == [0, 1, 2, 3, 4]
    assert ranks.agreed("mine") == "mine"
    assert ranks.first()


def test_who_is_who_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks.declared() == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert ranks.declared() == (3, 4)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert ranks.declared() == (0, 1), "a job of one task"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.declared() == (1, 2)


# Each rank says which pieces it made, and what it was given.
SHARE = """
import sys, torch
from salon import ranks
made = []
def make(number):
    made.append(number)
    return torch.full((number % 3 + 1,), number)
with ranks.together():
    rank, size = ranks.place()
    given = [piece.tolist() for piece in ranks.spread(make, 5)]
    told = ranks.agreed(f"rank {rank}")
    torch.save((made, given, told, size), f"{sys.argv[1]}/{rank}.pt")
assert ranks.place() == (0, 1), "the group is left"
"""


def launched(tmp_path: Path, script: str, number: int = 2) -> None:
    file = tmp_path / "script.py"
    file.write_text(script)
    ranks.launch([sys.executable, str(file), str(tmp_path)], number, tmp_path / "logs")


def test_ranks_share_the_pieces_and_all_have_them(tmp_path: Path) -> None:
    launched(tmp_path, SHARE)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first[0], second[0]) == ([0, 2, 4], [1, 3])
    assert first[1] == second[1] == [[0], [1, 1], [2, 2, 2], [3], [4, 4]]
    assert first[2] == second[2] == "rank 0"
    assert first[3] == second[3] == 2


FAIL = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("the reason")
    sys.exit(3)
try:
    time.sleep(60)
finally:
    open(sys.argv[1] + "/alive", "w")
"""


def test_where_one_fails_the_others_are_ended_and_it_is_said_why(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"(?s)rank 1 ended with exit code 3.*the reason"):
        launched(tmp_path, FAIL)
    assert time.monotonic() - began < 30
    assert not (tmp_path / "alive").exists()


def test_threads_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import os, sys\n"
        "told = open(sys.argv[1] + '/' + os.environ['RANK'], 'w')\n"
        "told.write(os.environ['OMP_NUM_THREADS'])"
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    launched(tmp_path, script)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["4", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    launched(tmp_path, script)
    assert (tmp_path / "1").read_text() == "3"


WAIT = """
import os, signal, sys, time
place = sys.argv[1] + "/" + os.environ["RANK"]
def note(number, frame):
    open(place + ".signal", "w").write(str(number))
    sys.exit(1)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
open(place + ".up", "w")
time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_what_ends_the_starter_ends_every_rank(tmp_path: Path, sent: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(WAIT)
    starter = (
        "import signal, sys; from pathlib import Path; from salon import doors, ranks\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with doors.errors_for_people():\n"
        f"    ranks.launch([sys.executable, {str(tmp_path / 'script.py')!r}, {str(tmp_path)!r}], 2,"
        f" Path({str(tmp_path / 'logs')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT)
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.up"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(sent)
        assert process.wait(60) == 128 + sent
    finally:
        process.kill()
    assert [(tmp_path / f"{rank}.signal").read_text() for rank in range(2)] == ["15", "15"]
