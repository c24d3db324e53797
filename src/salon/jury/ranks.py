"""One evaluation by several processes, as torchrun starts them; the numbers are those of one.

    torchrun --nproc-per-node 2 -m salon.jury evaluate checkpoint=RUN

Work is dealt out in the pieces that one process would take, since the rounding of a network depends
on its batch; every rank then has all of them, in order. The first rank alone writes and measures.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def first() -> bool:
    return place()[0] == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """For as long as it takes, one of the processes that torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():  # "cuda" is then a GPU of this rank's own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # What ranks tell each other lies on the CPU.
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def spread(make: Callable[[int], Tensor], number: int) -> Iterator[Tensor]:
    """Pieces 0 to `number` - 1, in order; each is made by one rank, on the CPU."""
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
