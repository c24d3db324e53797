"""Which part of a model is at work: in forward, in backward, and in what differentiates gradients.

    forward      the part of the innermost module that runs
    backward     the part whose forward made the node of the graph that runs now
    penalties    what `torch.autograd.grad` runs (R1, gradient penalties), and the backward of what
                 it made; where that goes on through a network's own forward, it is the network's,
                 since its gradients of all losses are one backward
    other        the rest: losses, and what is multiplied outside any module

torch's own tracker of modules raises where autograd.grad meets a leaf, as R1 does, and its hooks
split the graph. This one writes the part on each node as it is made, and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

OTHER, PENALTIES = "other", "penalties"
KEY = "salon.part"  # in a node's metadata


class Attribution(TorchFunctionMode):
    """Within `with Attribution(parts) as whose`, `whose.part()` is the part that is at work."""

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]]) -> None:
        super().__init__()
        self._owner: dict[int, str] = {}  # a module that two parts have is the first one's
        for name, modules in parts.items():
            for module in modules:
                for inner in module.modules():
                    self._owner.setdefault(id(inner), name)
        self._running: list[str] = []  # owners of the modules that run, the innermost last
        self._penalizing = False
        self._handles: list[Any] = []

    def __enter__(self) -> Attribution:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def part(self) -> str:
        if self._running:
            return self._running[-1]
        if self._penalizing:
            return PENALTIES
        node: Any = torch._C._current_autograd_node()
        return OTHER if node is None else node.metadata.get(KEY, OTHER)

    def _enter(self, module: nn.Module, *_: Any) -> None:
        if id(module) in self._owner:
            self._running.append(self._owner[id(module)])

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if id(module) in self._owner:
            self._running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self._penalizing = func is torch.autograd.grad
        try:
            out = func(*args, **(kwargs or {}))
            _mark(out, self.part())
        finally:
            self._penalizing = False
        return out


def _mark(out: Any, part: str) -> None:
    """Write the part on what is new in the graphs of these tensors: every older node has one."""
    made = out if isinstance(out, tuple | list) else (out,)
    todo: list[Any] = [one.grad_fn for one in made if isinstance(one, Tensor)]
    while todo:
        node = todo.pop()
        if node is not None and KEY not in node.metadata:
            node.metadata[KEY] = part
            todo += [before for before, _ in node.next_functions]
