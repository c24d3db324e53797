"""Two processes evaluate as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from hearings import ASKED
from salon.jury import ranks


def test_one_process_makes_every_piece_in_order() -> None:
    made = list(ranks.spread(lambda i: torch.tensor([i]), 5))
    assert [int(piece) for piece in made] == [0, 1, 2, 3, 4]
    assert ranks.agreed("mine") == "mine"
    assert ranks.first()


# Each rank says which pieces it made, and what it was given.
SCRIPT = """
import sys, torch
from salon.jury import ranks
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


def torchrun(*words: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={ranks}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def test_ranks_share_the_pieces_and_all_have_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (first[0], second[0]) == ([0, 2, 4], [1, 3])
    assert first[1] == second[1] == [[0], [1, 1], [2, 2, 2], [3], [4, 4]]
    assert first[2] == second[2] == "rank 0"
    assert first[3] == second[3] == 2


def test_two_ranks_give_the_numbers_of_one(heard: Path, trained: Path, tmp_path: Path) -> None:
    """Metrics, records, baselines and pictures; also where features were kept before."""
    words = ["-m", "salon.jury", "evaluate", f"checkpoint={trained}", *ASKED, f"out={tmp_path}"]
    for _ in range(2):
        done = torchrun(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads((tmp_path / "metrics.json").read_text())
        assert told == json.loads((heard / "metrics.json").read_text())
        assert done.stdout.count("the jury (") == 1, "one rank speaks"
    records = sorted(path.name for path in heard.glob("record*.json"))
    assert len(records) == 5
    for name in records:
        one, other = (json.loads((folder / name).read_text()) for folder in (heard, tmp_path))
        for record in (one, other):
            for setting in record["sweep"]:
                setting["latency"] = None
        assert one == other, name
    for name in ("test.png", "phrasings.png"):
        assert (heard / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_mistake_ends_all_ranks(trained: Path, tmp_path: Path) -> None:
    done = torchrun("-m", "salon.jury", "evaluate", f"checkpoint={trained}", "splits=[nowhere]")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
