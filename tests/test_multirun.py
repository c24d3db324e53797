"""Many runs by one command: failures, what is told of them, and the same command again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT, mini_overrides
from salon import run
from salon.multirun import job, plan, status, table
from salon.multirun.names import LONGEST, job_name
from test_run import LAST, assert_same, door

MODEL = "cvae/tiny"
FAST = ["callbacks.quality=null", "callbacks.samples=null", "objective=val/loss"]


def many(root: Path, sweep: Path, *words: str) -> list[str]:
    given = mini_overrides(MODEL, root)
    return ["train.py", "-m", *given, *FAST, f"hydra.sweep.dir={sweep}", *words]


def rows(sweep: Path) -> dict[str, dict[str, Any]]:
    """What jobs.json says of each job, by its folder's name."""
    told = json.loads((sweep / "jobs.json").read_text())["jobs"]
    with (sweep / "jobs.csv").open(newline="") as lines:
        assert [row["status"] for row in csv.DictReader(lines)] == [row["status"] for row in told]
    return {str(Path(row["folder"]).relative_to(sweep)): row for row in told}


def outcomes(sweep: Path) -> dict[str, str]:
    return {name: row["status"] for name, row in rows(sweep).items()}


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    """A printed command, pasted."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PATH": path},
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds; something lies in the way of the second, whose folder has an awkward name."""
    sweep = tmp_path_factory.mktemp("multi run, of 2")
    (sweep / "seed-1").mkdir()
    (sweep / "seed-1" / "checkpoints").write_text("in the way")
    done = door(*many(mini_root, sweep, "seed=1,0")[:-2], f'hydra.sweep.dir="{sweep}"', "seed=1,0")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (sweep / "told.txt").write_text(done.stdout)
    return sweep


def test_a_failed_job_leaves_the_others(swept: Path) -> None:
    told = rows(swept)
    assert {name: row["status"] for name, row in told.items()} == {
        "seed-1": "failed", "seed-0": "finished",
    }  # fmt: skip
    summary = json.loads((swept / "seed-0" / "summary.json").read_text())
    assert told["seed-0"]["objective"] == summary["metrics"]["val/loss"]
    assert "cannot be written" in told["seed-1"]["error"]
    assert "Traceback" in (swept / "seed-1" / "error.txt").read_text()
    screen = (swept / "told.txt").read_text()
    assert re.search(r"seed-1 +│ failed +│ +│ the run folder", screen)
    assert "1 failed, 1 finished" in screen
    assert told["seed-1"]["rerun"] in screen
    assert not (swept / "seed-0" / "error.txt").exists()
    assert "stage clip/tiny: " in (swept / "seed-0" / "log.txt").read_text()


def test_what_is_printed_goes_on(swept: Path, mini_root: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "multi, again"
    shutil.copytree(swept, sweep)
    told = json.loads((swept / "jobs.json").read_text().replace(str(swept), str(sweep)))
    (sweep / "seed-1" / "checkpoints").unlink()
    done = in_shell(next(row["rerun"] for row in told["jobs"] if row["status"] == "failed"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert status.read(sweep / "seed-1").status == "finished"  # type: ignore[union-attr]
    assert not (sweep / "seed-1" / "error.txt").exists()
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("last.ckpt")}
    assert len(before) == 2
    done = in_shell(told["command"].replace("seed=1,0", "seed=0,1,2"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcomes(sweep) == {
        "seed-0": "found finished", "seed-1": "found finished", "seed-2": "finished",
    }  # fmt: skip
    assert rows(sweep)["seed-0"]["objective"] == rows(swept)["seed-0"]["objective"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # The same jobs with another budget are other jobs, and touch nothing.
    done = in_shell(told["command"] + " budget.batches=6")
    assert done.returncode == 2
    assert "budget.batches=6 in place of 4" in done.stderr
    assert "resume=auto" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}


# train.py, whose run with seed 1 waits after its third batch: past the checkpoint at 2.
PAUSED = """
import runpy, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
from salon.callbacks.cost import Cost
before = Cost.on_train_batch_start
def pause(self, trainer, module, *rest):
    before(self, trainer, module, *rest)
    if module.batches_seen == 3 and module.seed == 1:  # between two batches
        Path(trainer.default_root_dir, "paused").touch()
        time.sleep(600)
Cost.on_train_batch_start = pause
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_stopped_in_the_middle_it_tells_and_goes_on(
    mini: Callable[..., DictConfig], mini_root: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    process = subprocess.Popen(
        [sys.executable, "-c", PAUSED, *many(mini_root, sweep, "seed=0,1,2")], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (sweep / "seed-1" / "paused").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        told, complaints = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, complaints[-3000:]
    assert "stopped: saved after batch 3" in complaints
    assert outcomes(sweep) == {"seed-0": "finished", "seed-1": "interrupted", "seed-2": "not run"}
    assert "1 finished, 1 interrupted, 1 not run" in told
    command = json.loads((sweep / "jobs.json").read_text())["command"]
    assert command in told

    done = in_shell(command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert outcomes(sweep) == {
        "seed-0": "found finished", "seed-1": "finished", "seed-2": "finished",
    }  # fmt: skip
    run.train(mini(MODEL, *FAST, "seed=1"), tmp_path / "whole")
    assert_same(tmp_path / "whole", sweep / "seed-1")


# -- the parts -------------------------------------------------------------------------------------


def test_names_are_readable_and_nothing_needs_quotes() -> None:
    words = ["batch_size=8", "model=df_gan/tiny", "+model.lr=1e-3", "seed=1"]
    assert job_name("model,seed", words, 3) == "model-df_gan.tiny+seed-1"
    assert job_name("model.lr", words, 3) == "model.lr-1e-3"
    assert job_name("", words, 3) == "3"
    awkward = [f"x={value}" for value in ("[1,2]", "{1:2}", "'a b'", "$(rm)", "é", "a" * 300)]
    names = [job_name("x", [word], 0) for word in awkward]
    assert len(set(names)) == len(names), "a hash tells apart what is spelled alike"
    for name in names:
        assert len(name) <= LONGEST
        assert OverridesParser.create().parse_override(f"k=a/{name}").value() == f"a/{name}"
        assert re.fullmatch(r"[\w.+-]+", name, re.ASCII)
    same_start = [job_name("x", [f"x={'a' * 300}{i}"], 0) for i in range(2)]
    assert same_start[0] != same_start[1]


def test_a_command_survives_shell_and_hydra(tmp_path: Path) -> None:
    for name in ("plain", "a,b=c", "with space", 'quo"te', "o'clock", "1.50"):
        words = ["prompts=[a 'b', c]", "resume=null", "x=$HOME"]
        told = plan.rerun(Path(name), words)
        listed = in_shell(f"printf '%s\\n' {told.removeprefix('python train.py ')}").stdout
        said = listed.splitlines()
        assert said[:2] == ["prompts=[a 'b', c]", "x=$HOME"]
        assert OverridesParser.create().parse_override(said[-2]).value() == name
        assert said[-1] == "resume=auto"
    assert plan.rerun(Path("job"), ["resume=runs/a", "x=1"]).endswith("resume=runs/a")


@pytest.fixture(scope="module")
def trained(mini_root: Path, swept: Path) -> Path:
    return swept / "seed-0"


def test_resume_in_a_multirun(
    mini: Callable[..., DictConfig], trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    shutil.copytree(trained, folder)
    same = [*FAST, "seed=0"]

    def settle(*words: str, **options: bool) -> DictConfig:
        return job.settled(mini(MODEL, *same, *words), [*same, *words], folder, **options)

    assert settle().resume == "auto"
    assert run.finished(settle(), folder)
    assert job.settled(mini(MODEL), [], tmp_path / "empty").resume == "auto"
    for change in ("budget.batches=6", "seed=3", "model.latent=5", "data.world_seed=1"):
        with pytest.raises(ValueError, match=f"holds another run.*{change}"):
            settle(change)
    # Whoever says so may go on for longer, and not with another model, nor with less.
    assert settle("budget.batches=6", "resume=auto").budget.batches == 6
    for change in ("budget.batches=2", "model.latent=5", "seed=3"):
        with pytest.raises(ValueError, match=f"holds another run.*{change}"):
            settle(change, "resume=auto")
    # resume=FOLDER is where a job starts; then it goes on with itself.
    words = [*FAST, f"resume={folder}"]
    assert job.settled(mini(MODEL, *words), words, folder).resume == "auto"
    words += ["budget.batches=6"]
    forked = job.settled(mini(MODEL, *words, "model.latent=7"), words, tmp_path / "fork")
    assert (forked.resume, forked.budget.batches, forked.model.latent) == (str(folder), 6, 4)
    # resume=null, said aloud, is anew.
    assert (folder / LAST).exists()
    assert settle("resume=null").resume is None
    assert (folder / LAST).exists(), "looking changes nothing"
    assert settle("resume=null", trainable=True).resume is None
    assert not (folder / LAST).exists()
    assert not (folder / "summary.json").exists()


def made(folder: Path, names: list[str] | None) -> plan.Plan:
    jobs = None if names is None else [plan.Job(folder / name, [f"x={name}"]) for name in names]
    return plan.Plan(folder, jobs, "python train.py -m", [], time.time() - 1)


def test_what_became_of_jobs_in_other_processes(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "100"])
    for name, pid, host in (("killed", 2**22 + 1, ""), ("runs", process.pid, ""), ("far", 1, "x")):
        (tmp_path / name).mkdir()
        begun = status.begin(tmp_path / name, [f"x={name}"])
        status._write(tmp_path / name, begun._replace(pid=pid, host=host or begun.host))
    names = ["killed", "runs", "far", "never"]
    told = {Path(row.folder).name: row for row in table.told(made(tmp_path, names), stopped=False)}
    states = {name: row.status for name, row in told.items()}
    assert states == {"killed": "failed", "runs": "running", "far": "running", "never": "not run"}
    assert told["killed"].error == table.KILLED
    stopped = table.told(made(tmp_path, names), stopped=True)
    assert stopped[0].status == "interrupted"
    later = made(tmp_path, None)._replace(started=time.time() + 5)
    assert len(table.told(made(tmp_path, None), stopped=False)) == 3
    assert table.told(later, stopped=False) == [], "those of an earlier command"
    process.kill()
    deadline = time.monotonic() + 10
    while status.alive(status.read(tmp_path / "runs")):  # type: ignore[arg-type]
        assert time.monotonic() < deadline, "dead, though nobody has reaped it"
    process.wait()


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ("finished found", 0), ("finished mistake", 2), ("mistake bug", 1), ("finished bug", 1),
        ("mistake never", 1), ("mistake mistake", 2),
    ],
)  # fmt: skip
def test_exit_codes(tmp_path: Path, states: str, code: int) -> None:
    names = [f"{i}{state}" for i, state in enumerate(states.split())]
    for name in names:
        if name.endswith("never"):
            continue
        (tmp_path / name).mkdir()
        error = {"mistake": ValueError("no"), "bug": RuntimeError("oh")}.get(name[1:])
        try:
            with job.told(tmp_path / name, []) as said:
                said["found"] = name.endswith("found")
                if error is not None:
                    raise error
        except (ValueError, RuntimeError):
            pass
    assert table.exit_code(table.told(made(tmp_path, names), stopped=False)) == code


def test_a_job_has_its_folder_alone(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from salon.multirun import job\n"
        f"with job.alone(Path({str(tmp_path)!r})): pass"
    )
    with job.alone(tmp_path):
        done = door("-c", code)
        by_hand = door("train.py", *mini_overrides(MODEL, tmp_path), f"hydra.run.dir={tmp_path}")
    assert "is being trained in by another process" in done.stderr
    assert by_hand.returncode == 2
    assert f"{tmp_path} is being trained in by another process" in by_hand.stderr
    assert not (tmp_path / "metrics.csv").exists()
    assert door("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("launcher", "jobs", "threads"),
    [
        ({"_target_": "x.JoblibLauncher", "n_jobs": 2}, 8, "4"),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, 8, "1"),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, 2, "4"),
        ({"_target_": "x.submitit_launcher.LocalLauncher"}, 3, "2"),
        ({"_target_": "x.submitit_launcher.SlurmLauncher"}, 3, None),
        ({"_target_": "x.BasicLauncher"}, 3, None),
    ],
)
def test_cores_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], jobs: int, threads: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    cfg = OmegaConf.create({"hydra": {"launcher": launcher, "sweeper": {"max_batch_size": None}}})
    plan.share_cores(cfg, jobs)
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    plan.share_cores(cfg, jobs)
    assert os.environ["OMP_NUM_THREADS"] == "3", "the user has said"


def test_two_jobs_in_one_folder_are_refused(mini_root: Path, tmp_path: Path) -> None:
    done = door(*many(mini_root, tmp_path / "s", "seed=0,1", "hydra.sweep.subdir=same"))
    assert done.returncode == 2
    assert "2 jobs would train in" in done.stderr
    assert not (tmp_path / "s" / "same").exists()
