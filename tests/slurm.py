"""A SLURM of one machine: sbatch, srun, sacct and scontrol, by the name that the file is called by.

It really runs the jobs of an array, one process each, queues them again when asked to, and keeps
what is known of them in the folder SLURM_FAKE.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = "1000"


def install(folder: Path) -> dict[str, str]:
    """Puts the commands into `folder`; returns the environment that finds them."""
    folder.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        command = folder / name
        command.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        command.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "SLURM_FAKE": str(folder)}


def sbatch(script: str) -> None:
    first, last = re.findall(r"#SBATCH --array=(\d+)-(\d+)", Path(script).read_text())[0]
    for task in range(int(first), int(last) + 1):
        subprocess.Popen(
            [sys.executable, __file__, "task", script, str(task)], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(f"Submitted batch job {JOB}")


def task(script: str, number: str) -> None:
    """One of an array, and again where it was requeued."""
    cores = re.findall(r"#SBATCH --cpus-per-task=(\d+)", Path(script).read_text())
    told = {
        "JOB_ID": f"{int(JOB) + 1 + int(number)}", "ARRAY_JOB_ID": JOB, "ARRAY_TASK_ID": number,
        "NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NUM_NODES": "1", "NNODES": "1",
        "JOB_NODELIST": "localhost", "NODELIST": "localhost", "JOB_NAME": "train",
        "CPUS_PER_TASK": cores[0],
    }  # fmt: skip
    folder, key = Path(os.environ["SLURM_FAKE"]), f"{JOB}_{number}"
    env = {**os.environ, **{f"SLURM_{name}": value for name, value in told.items()}}
    (folder / f"{key}.state").write_text("RUNNING")
    while True:
        code = subprocess.run(["bash", script], env=env).returncode
        if not (folder / f"{key}.requeued").exists():
            break
        (folder / f"{key}.requeued").rename(folder / f"{key}.was_requeued")
    (folder / f"{key}.state").write_text("FAILED" if code else "COMPLETED")


def srun(*words: str) -> None:
    given, command = list(words), []
    while given:
        word = given.pop(0)
        if word in ("--output", "--error"):
            name = given.pop(0).replace("%A", JOB).replace("%t", "0")
            file = os.open(
                name.replace("%a", os.environ["SLURM_ARRAY_TASK_ID"]),
                os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644,
            )  # fmt: skip
            os.dup2(file, 1 if word == "--output" else 2)
        elif not word.startswith("--"):
            command = [word, *given]
            break
    place = {"PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    os.environ.update({f"SLURM_{name}": value for name, value in place.items()})
    os.execvp(command[0], command)


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for file in sorted(Path(os.environ["SLURM_FAKE"]).glob("*.state")):
        print(f"{file.stem}|{file.read_text()}|localhost")


def scontrol(verb: str, job: str) -> None:
    assert verb == "requeue"
    (Path(os.environ["SLURM_FAKE"]) / f"{job}.requeued").touch()


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    if words[:1] == ["task"]:
        name, words = "task", words[1:]
    globals()[name](*words)
