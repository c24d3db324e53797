"""Floating point operations, counted as torch dispatches them: a multiply-add is two.

torch's own counter raises where autograd.grad meets a leaf (R1 and gradient penalties); this one is
a dispatch mode over the same table of formulas. Normalisations and activations count as nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from salon.metrics.parts import Attribution

aten = torch.ops.aten
# Older tables lack the CPU's attention, which takes the same arguments as the GPU's.
FORMULAS = {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}


class FlopCount(TorchDispatchMode):
    """`with FlopCount() as count: ...` leaves the operations in `count.total`.

    With `parts`, modules by name, they are also told apart in `count.by_part` (see
    `salon.metrics.parts`), which adds up to the total; a part that did nothing is not in it.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]] | None = None) -> None:
        super().__init__()
        self.total = 0
        self.by_part: dict[str, int] = {}
        self._whose = None if parts is None else Attribution(parts)
        self._fast = True

    def __enter__(self) -> FlopCount:
        # nn.MultiheadAttention without gradients is one fused operation, which no formula knows.
        self._fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        if self._whose is not None:
            self._whose.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if self._whose is not None:
            self._whose.__exit__(*exception)
        torch.backends.mha.set_fastpath_enabled(self._fast)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            found = formula(*args, **(kwargs or {}), out_val=out)
            self.total += found
            if self._whose is not None:
                part = self._whose.part()
                self.by_part[part] = self.by_part.get(part, 0) + found
        return out
