"""SLURM's own queue: a job that has to leave puts itself back."""

from __future__ import annotations

import os
import signal
import subprocess

# Asked for as `#SBATCH --signal=SIGUSR1@90`: what SLURM sends before it takes the machine away.
WARNING = signal.SIGUSR1


def inside() -> bool:
    return "SLURM_JOB_ID" in os.environ


def job() -> str:
    """As scontrol names it; a task of an array by the array's number and its own."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is not None:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue() -> tuple[int, str]:
    """Asks SLURM to run this job again; how the process shall end, and what is to be said."""
    command = ["scontrol", "requeue", job()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        why = (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        return 128 + WARNING, f"{' '.join(command)} did not work: {why}"
    return 0, f"job {job()} is in the queue again"
