"""Floating point operations, counted as torch dispatches them: a multiply-add is two.

torch's own counter raises where autograd.grad meets a leaf (R1 and gradient penalties); this one is
a dispatch mode over the same table of formulas. Normalisations and activations count as nothing.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):
    """`with FlopCount() as count: ...` leaves the operations in `count.total`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out
