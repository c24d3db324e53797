"""Several processes on one task: who they are, what they tell each other, and how they are started.

Processes that torchrun or SLURM started find each other by what these put into the environment;
`launch` starts those of one machine itself, and gives them the same names.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
TAIL = 20  # lines of a failed rank's log that are shown
PATIENCE = datetime.timedelta(hours=6)  # the first rank may wait for another job's stage
GRACE = 30.0  # seconds that the other ranks have, once one has failed or a signal came


def declared() -> tuple[int, int]:
    """This process's rank and how many there are, as whoever started it says: (0, 1) if nobody."""
    for rank, ranks in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and int(os.environ.get(ranks, "1")) > 1:
            return int(os.environ[rank]), int(os.environ[ranks])
    return 0, 1


def place() -> tuple[int, int]:
    """This process's rank among those that have met, and how many they are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def first() -> bool:
    return place()[0] == 0


@contextlib.contextmanager
def together(backend: str = "gloo") -> Iterator[None]:
    """Meet the other processes, if there are any; leave them at the end.

    `gloo` for what lies on the CPU; `cpu:gloo,cuda:nccl` where GPUs also talk.
    """
    if declared()[1] == 1 or (dist.is_available() and dist.is_initialized()):
        yield
        return
    if torch.cuda.is_available():  # "cuda" is then a GPU of this rank's own
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        torch.cuda.set_device(local % torch.cuda.device_count())
    _slurm_address()
    rank, ranks = declared()
    dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _slurm_address() -> None:
    """Where to meet, which srun does not say by itself."""
    if "MASTER_ADDR" in os.environ or "SLURM_NTASKS" not in os.environ:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ["MASTER_ADDR"] = slurm.main_address
    os.environ["MASTER_PORT"] = str(slurm.main_port)


def spread(make: Callable[[int], Tensor], number: int) -> Iterator[Tensor]:
    """Pieces 0 to `number` - 1, in order; each is made by one rank, on the CPU, and all get it."""
    rank, ranks = place()
    if ranks == 1:
        yield from map(make, range(number))
        return
    for start in range(0, number, ranks):
        mine = make(start + rank) if start + rank < number else None
        found: list[Tensor | None] = [None] * ranks
        dist.all_gather_object(found, mine)
        yield from (piece for piece in found if piece is not None)


def agreed(value: T) -> T:
    """The first rank's."""
    if place()[1] == 1:
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0)
    return told[0]


# -- starting them ---------------------------------------------------------------------------------


def launch(command: Sequence[str], number: int, logs: Path) -> None:
    """`number` processes of one command on this machine, which ends with the last of them.

    The first writes where this process does, the others into `logs`. Where one fails the others are
    ended, and ValueError says how; signals that end this process reach all of them.
    """
    logs.mkdir(parents=True, exist_ok=True)
    shared = {
        "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()), "GROUP_RANK": "0", "NODE_RANK": "0",
        "TORCHELASTIC_RUN_ID": "salon",  # by which Lightning knows that ranks were started for it
    }  # fmt: skip
    # Each process with all threads would fight the others for the cores.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // number))
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        try:
            for rank in range(number):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads}
                out = stack.enter_context(_log(logs, rank).open("wb")) if rank else None
                started.append(
                    subprocess.Popen(
                        command, env={**os.environ, **shared, **own}, stdout=out,
                        stderr=subprocess.STDOUT if rank else None,
                        start_new_session=True,  # a terminal's Ctrl-C comes once, and through us
                    )
                )  # fmt: skip
            failed = _watch(started)
        finally:
            _end(started)
    if failed is not None:
        raise ValueError(_told(failed, started[failed].returncode, logs))


def _watch(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank that failed, once one has, or None when all are through."""
    while True:
        codes = [process.poll() for process in started]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """A rank that trains ends with its batch, and saves."""
    for process in started:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
    for process in started:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _told(rank: int, code: int, logs: Path) -> str:
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    if rank == 0:
        return f"rank 0 ended with {how}; what it says is above. The other ranks' logs: {logs}"
    lines = _log(logs, rank).read_text(errors="replace").splitlines()[-TAIL:]
    return f"rank {rank} ended with {how}. Its log, {_log(logs, rank)}:\n" + "\n".join(lines)


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.log"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def module(name: str, *words: str) -> list[str]:
    """The command that runs a module in this Python."""
    return [sys.executable, "-m", name, *words]
