"""Workers of one machine share its GPUs out among themselves; the GPUs here are made up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from salon.multirun import gpus

WORKER = """
import os, sys, torch
from types import SimpleNamespace
from omegaconf import OmegaConf
from salon.multirun import gpus
torch.cuda.device_count = lambda: 2
launcher = SimpleNamespace(_target_="hydra_plugins.hydra_joblib_launcher.JoblibLauncher")
for _ in range(2):  # jobs of one worker
    gpus.take_one(launcher, OmegaConf.create({"devices": 1, "accelerator": "auto"}))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


class Workers:
    def __init__(self, place: Path) -> None:
        self.place, self.alive = place, list[subprocess.Popen[str]]()

    def start(self, **environment: str) -> str:
        env = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**env, "TMPDIR": str(self.place), **environment},
        )  # fmt: skip
        self.alive.append(worker)
        assert worker.stdout is not None
        return worker.stdout.readline().strip()

    def end(self, number: int) -> None:
        self.alive[number].kill()
        self.alive[number].wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path)
    yield made
    for number in range(len(made.alive)):
        made.end(number)


def test_each_worker_takes_the_gpu_that_fewest_have(workers: Workers) -> None:
    assert [workers.start() for _ in range(3)] == ["0", "1", "0"]
    workers.end(1)
    assert workers.start() == "1", "a worker that was killed has none"


def test_of_those_that_the_user_left_visible(workers: Workers) -> None:
    some = {"CUDA_VISIBLE_DEVICES": "4, GPU-8932f937"}
    assert [workers.start(**some) for _ in range(2)] == ["4", "GPU-8932f937"]
    assert workers.start(CUDA_VISIBLE_DEVICES="4") == "4", "nothing to choose"
    assert workers.start(CUDA_VISIBLE_DEVICES="") == "", "hidden by the user"


@pytest.mark.parametrize(
    ("launcher", "trainer"),
    [
        ("SLURMLauncher", {"devices": 1, "accelerator": "auto"}),
        ("JoblibLauncher", {"devices": 2, "accelerator": "auto"}),
        ("JoblibLauncher", {"devices": 1, "accelerator": "cpu"}),
    ],
)
def test_what_others_share_out_or_nobody_wants(
    launcher: str, trainer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.torch.cuda, "device_count", lambda: 2)
    gpus.take_one(SimpleNamespace(_target_=f"some.{launcher}"), OmegaConf.create(trainer))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert gpus._kept == []
