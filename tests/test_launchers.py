"""Many runs on several processes or machines: each launcher, with a job that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import slurm
from conftest import ROOT
from salon import doors
from salon.multirun import status
from test_multirun import in_shell, many, outcomes, rows
from test_run import door

GOOD, BAD = "model.latent-4", "model.latent--1"
PAIR = "model.latent=4,-1"


def pair(launcher: str, root: Path, sweep: Path, *words: str) -> list[str]:
    """Two jobs with the same stage, which is not trained yet; one of them has a negative size."""
    given = [f"hydra/launcher={launcher}", PAIR, f"stages_dir={sweep}/stages", *words]
    return many(root, sweep, *given)


def check(sweep: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert outcomes(sweep) == {GOOD: "finished", BAD: "failed"}
    told = rows(sweep)
    summary = json.loads((sweep / GOOD / "summary.json").read_text())
    assert told[GOOD]["objective"] == summary["metrics"]["val/loss"]
    assert told[BAD]["error"].startswith("RuntimeError: Trying to create tensor")
    assert "make_model" in (sweep / BAD / "error.txt").read_text()
    assert "1 finished, 1 failed" in done.stdout
    assert told[BAD]["rerun"] in done.stdout
    logs = [(sweep / name / "log.txt").read_text() for name in (GOOD, BAD)]
    assert sum("stage clip/tiny: trained now" in text for text in logs) == 1
    assert sum("stage clip/tiny: found" in text for text in logs) == 1
    pids = {status.read(sweep / name).pid for name in (GOOD, BAD)}  # type: ignore[union-attr]
    assert len(pids) == 2, "each in a process of its own"


def test_processes(mini_root: Path, tmp_path: Path) -> None:
    done = door(*pair("processes", mini_root, tmp_path / "sweep"))
    check(tmp_path / "sweep", done)
    again = json.loads((tmp_path / "sweep" / "jobs.json").read_text())["command"]
    done = in_shell(again.replace(PAIR, "model.latent=4,5"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcomes(tmp_path / "sweep") == {GOOD: "found finished", "model.latent-5": "finished"}


def test_local(mini_root: Path, tmp_path: Path) -> None:
    check(tmp_path / "sweep", door(*pair("local", mini_root, tmp_path / "sweep")))
    assert list((tmp_path / "sweep" / ".submitit").glob("*/*_log.out"))


def test_slurm(mini_root: Path, tmp_path: Path) -> None:
    env = slurm.install(tmp_path / "slurm")
    done = door(
        *pair("slurm", mini_root, tmp_path / "sweep", "hydra.launcher.partition=gpu"), env=env
    )
    check(tmp_path / "sweep", done)
    script = next((tmp_path / "sweep" / ".submitit").rglob("*submission*.sh")).read_text()
    for line in (
        "array=0-1%2",
        "cpus-per-task=4",
        "gpus-per-node=1",
        "partition=gpu",
        "signal=USR2@120",
    ):
        assert f"#SBATCH --{line}" in script


def test_slurm_queues_a_preempted_job_again(mini_root: Path, tmp_path: Path) -> None:
    """The signal comes before the end of the time; the job goes on from its last checkpoint."""
    env, sweep = slurm.install(tmp_path / "slurm"), tmp_path / "sweep"
    budget = "budget={batches: 100, validate_every: 100, checkpoint_every: 2}"
    process = subprocess.Popen(
        [sys.executable, *many(mini_root, sweep, "hydra/launcher=slurm", "seed=0,1", budget)],
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 500
    while not (sweep / "seed-0" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun = status.read(sweep / "seed-0")
    assert begun is not None
    os.kill(begun.pid, signal.SIGUSR2)
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told[-3000:]
    assert (tmp_path / "slurm" / "1000_0.was_requeued").exists()
    assert outcomes(sweep) == {"seed-0": "finished", "seed-1": "finished"}
    after = status.read(sweep / "seed-0")
    assert after is not None
    assert after.pid != begun.pid
    assert json.loads((sweep / "seed-0" / "summary.json").read_text())["batches"] == 100


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is an extra: pip install -e '.[ray]'")
def test_ray(mini_root: Path, tmp_path: Path) -> None:
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    check(tmp_path / "sweep", door(*pair("ray_local", mini_root, tmp_path / "sweep"), env=env))


@pytest.mark.parametrize("name", sorted(doors.EXTRAS))
def test_a_missing_plugin_names_its_extra(name: str) -> None:
    assert f"pip install -e '.[{doors.EXTRAS[name]}]'" in str(doors._no_such_option(name))


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_plugin_is_a_message() -> None:
    done = door("train.py", "-m", "hydra/launcher=ray_local", "seed=0,1")
    assert done.returncode == 2
    assert "pip install -e '.[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_launcher_is_a_message() -> None:
    done = door("train.py", "-m", "hydra/launcher=proceses", "seed=0,1")
    assert done.returncode == 2
    assert "nearest known one is hydra/launcher=processes" in done.stderr
