"""What can befall a training, done to real processes: `python train.py`, and what it leaves."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, mini_overrides
from data.test_signals import ENDLESS, alive, said, training, until
from salon import checkpoint
from tars import folder_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and limits of Linux")

GAN = "gan_int_cls/tiny"
LAST = checkpoint.LAST
# train.py, with something that befalls it; {} is what to do to the classes that it imports.
WRAPPED = """
import errno, os, resource, runpy, signal, sys
import torch
from salon import files
from salon.callbacks.save import SaveLast
from salon.models.autoencoder import Autoencoder
from salon.models.gan_int_cls import GANIntCLS

def befalls(owner, name, when, what):
    real = getattr(owner, name)
    def instead(self, *arguments, **options):
        if when(self):
            what(self)
        return real(self, *arguments, **options)
    setattr(owner, name, instead)

{}
sys.argv = ["train.py", *sys.argv[1:]]
sys.path.insert(0, ".")
runpy.run_path("train.py", run_name="__main__")
"""


def train(*overrides: str, befalls: str = "", **environment: str) -> Any:
    command = [sys.executable, *(["-c", WRAPPED.format(befalls)] if befalls else ["train.py"])]
    return subprocess.run(
        [*command, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def in_generator(batch: int, what: str) -> str:
    """In the middle of a GAN's batch: its discriminator has stepped, and its generator has not."""
    when = f"lambda model: model.batches_seen + 1 == {batch}"
    return f'befalls(GANIntCLS, "generator_loss", {when}, lambda model: {what})'


def kill(number: int) -> str:
    return f"os.kill(os.getpid(), {int(number)})"


def batches_in(folder: Path) -> int:
    progress = checkpoint.read(folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["total"]["processed"])


def assert_good(folder: Path, batches: int) -> None:
    """A checkpoint of so many batches that loads, and nothing half-written beside it."""
    assert batches_in(folder) == batches
    model = checkpoint.load(folder)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert not list(folder.rglob("*.partial"))
    with (folder / "metrics.csv").open(newline="") as file:
        assert all(int(row["batches"]) >= 0 for row in csv.DictReader(file))


# -- stopped, and gone on with ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As in a task of an array job; what is asked of scontrol is in $ASKED."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$ASKED"\nexit ${FAILS:-0}\n')
    (folder / "scontrol").chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}", "ASKED": str(folder / "asked"),
        "SLURM_JOB_ID": "81", "SLURM_ARRAY_JOB_ID": "80", "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "salon", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }  # fmt: skip


def test_however_a_run_is_stopped_it_ends_as_if_it_was_not(
    mini_root: Path, tmp_path: Path, slurm: dict[str, str]
) -> None:
    """A GAN, stopped in the middle of a batch by everything that stops runs, one after another."""
    budget = "budget={batches: 7, validate_every: 4, checkpoint_every: 6}"
    given = [*mini_overrides(GAN, mini_root), budget, "resume=auto"]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    done = train(*given, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr[-3000:]
    here = [*given, f"hydra.run.dir={folder}"]

    done = train(*here, befalls=in_generator(2, kill(signal.SIGINT)))
    assert done.returncode == 130, done.stderr[-3000:]
    assert (
        f"stopped: saved after batch 2; go on with python train.py resume={folder}" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert_good(folder, 2)

    done = train(*here, befalls=in_generator(3, kill(signal.SIGTERM)))
    assert done.returncode == 143, done.stderr[-3000:]
    assert "terminated: saved after batch 3" in done.stderr
    assert_good(folder, 3)

    done = train(*here, befalls=in_generator(5, kill(signal.SIGUSR1)), **slurm)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "job 80_3 is in the queue again: saved after batch 5" in done.stderr
    assert Path(slurm["ASKED"]).read_text() == "requeue 80_3\n"
    assert not list(folder.glob("hpc_ckpt*")), "Lightning's own, which nothing goes on from"
    assert_good(folder, 5)

    half = """
real = files._sync
def sync(path):
    if path.name == "last.ckpt.partial":
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)
files._sync = sync
"""
    done = train(*here, befalls=half)
    assert done.returncode == -signal.SIGKILL
    assert (folder / LAST).with_name("last.ckpt.partial").exists()
    assert batches_in(folder) == 5

    done = train(*here, befalls=in_generator(6, kill(signal.SIGKILL)))
    assert done.returncode == -signal.SIGKILL
    assert batches_in(folder) == 5

    done = train(*here)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_good(folder, 7)
    one, other = checkpoint.read(whole), checkpoint.read(folder)
    for name, weight in one["state_dict"].items():
        assert torch.equal(other["state_dict"][name], weight), name
    for name, weight in one["ema"]["average"].items():
        assert torch.equal(other["ema"]["average"][name], weight), name
    rows = [list(csv.DictReader((f / "metrics.csv").open(newline=""))) for f in (whole, folder)]
    assert [row["batches"] for row in rows[0]] == [row["batches"] for row in rows[1]]


# -- numbers that are not finite -------------------------------------------------------------------


def test_a_huge_learning_rate_is_a_message(mini_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    budget = "budget={batches: 40, validate_every: 40, checkpoint_every: 1}"
    done = train(
        *mini_overrides(GAN, mini_root),
        budget,
        "model.optimizer.lr=1e30",
        f"hydra.run.dir={folder}",
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    for words in (
        "the run diverged in batch ", "train/d_loss is nan", "a lower learning rate (now", "1e+30",
        str(folder / "diverged"), f"go on with python train.py resume={folder}",
    ):  # fmt: skip
        assert words in done.stderr, done.stderr[-2000:]
    (file,) = (folder / "diverged").glob("*.json")
    told = json.loads(file.read_text())
    assert told["first_output"] or told["first_gradient"], "a module is named"
    assert len(told["keys"]) == len(told["captions"]) == 8
    kept = torch.load(file.with_suffix(".pt"), weights_only=True)
    assert kept["keys"] == told["keys"]
    assert kept["images"].shape == (8, 3, 16, 16)
    assert_good(folder, told["batch"] - 1)


@pytest.fixture
def endless(tmp_path: Path) -> list[str]:
    """An autoencoder that trains until something befalls it, on shards of a few pictures."""
    shards = folder_of(tmp_path / "shards", shards=4, each=8)
    return [
        *ENDLESS, f"data.train={shards}", f"data.val={shards}", "data.workers=0",
        f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip


def in_step(batch: int, what: str) -> str:
    when = f"lambda model: model.batches_seen + 1 == {batch}"
    return f'befalls(Autoencoder, "training_step", {when}, lambda model: {what})'


def test_the_module_with_the_bad_weights_is_named(endless: list[str], tmp_path: Path) -> None:
    name = "network.decoder.conv_in"
    spoil = f'model.get_submodule("{name}").weight.data.view(-1)[3:4].fill_(float("nan"))'
    done = train(*endless, befalls=in_step(6, spoil))
    assert done.returncode == 2, done.stderr[-3000:]
    for words in (
        "diverged in batch 6: train/loss is nan", f"not finite is {name} (Conv2d)'s",
        f"the weights of {name}.weight are not finite",
    ):  # fmt: skip
        assert words in done.stderr, done.stderr[-2000:]
    assert_good(tmp_path / "run", 4)


# -- what a machine runs out of --------------------------------------------------------------------


def test_out_of_memory_names_the_batch_size(endless: list[str], tmp_path: Path) -> None:
    """More than any machine has is asked of the real allocator."""
    done = train(*endless, befalls=in_step(4, "torch.empty(2**48)"))
    assert done.returncode == 2, done.stderr[-3000:]
    for words in (
        "out of memory with batch_size=8 at data.resolution=16, 32-true", "Lower batch_size",
        "trainer.precision=bf16-mixed", f"go on with python train.py resume={tmp_path}/run",
    ):  # fmt: skip
        assert words in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert_good(tmp_path / "run", 2)


def test_a_killed_worker_is_a_message(tmp_path: Path) -> None:
    """As the kernel does where memory is short."""
    shards, folder = folder_of(tmp_path / "shards", shards=4, each=8), tmp_path / "run"
    with training(folder, f"data.train={shards}", f"data.val={shards}") as run:
        workers = [
            int(file.parent.name) for file in Path("/proc").glob("[0-9]*/status")
            if f"PPid:\t{run.pid}\n" in read(file)
        ]  # fmt: skip
        assert len(workers) >= 2
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        assert until(lambda: run.poll() is not None and not alive(run.pid), 120)
    assert run.returncode == 2, said(folder)
    told = said(folder)
    assert "a process that reads data is gone" in told
    assert "lower data.workers (now 2) or data.window (now 8)" in told
    assert "Traceback" not in told
    assert batches_in(folder) >= 2


def read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # gone meanwhile
        return ""


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint(
    endless: list[str], tmp_path: Path
) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = train(*endless, befalls=in_step(3, limit))
    assert_full(done, tmp_path / "run")
    assert "File too large" in done.stderr


def assert_full(done: Any, folder: Path) -> None:
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"{folder / LAST} could not be written" in done.stderr
    assert "It needs " in done.stderr
    assert "The checkpoint before this one is as it was" in done.stderr
    assert f"go on with resume={folder}" in done.stderr
    assert "Traceback" not in done.stderr
    assert_good(folder, 2)


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no file system of one's own without privileges here")
def test_a_full_disk_leaves_the_last_checkpoint(endless: list[str], tmp_path: Path) -> None:
    """A file system that holds one checkpoint, and not a second one beside it."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    given = [o for o in endless if not o.startswith("hydra.run.dir")]
    script = (
        f"mount -t tmpfs -o size=$SIZE tmpfs {disk} && "
        f'{sys.executable} train.py "$@" hydra.run.dir={disk}/run; code=$?; '
        f"cp -a {disk}/run {out}; exit $code"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *given], cwd=ROOT, capture_output=True,
        text=True, timeout=600, check=False, env={**os.environ, "SIZE": SIZE},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"{disk}/run/{LAST} could not be written" in done.stderr
    assert "No space left on device" in done.stderr
    assert_good(out, 2)


SIZE = "1000k"
