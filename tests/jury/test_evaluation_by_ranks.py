"""Two processes evaluate as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from hearings import ASKED


def torchrun(*words: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={ranks}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "2"}, cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


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
