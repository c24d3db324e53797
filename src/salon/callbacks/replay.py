"""A training batch once more, to find where numbers stop being finite. Nothing lasting changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from salon.models.base import Trainee


class Found(NamedTuple):
    logged: dict[str, float]  # what the step logs that is not finite, in order
    output: str | None  # the first module, in order, whose output is not finite
    gradient: str | None  # the first, backwards, at whose output the gradient is not


def replay(
    trainer: Trainer, module: Trainee, batch: Any, batch_idx: int, trained: list[nn.Parameter]
) -> Found:
    """From the same random state, with the weights as they are, and without a step of any
    optimiser; a GAN whose D has stepped already shows its G exactly as it was."""
    logged: dict[str, float] = {}
    outputs: list[str] = []
    gradients: list[str] = []

    def log(name: str, value: Any, *_: Any, **__: Any) -> None:
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if number - number != 0:
            logged[name] = number

    def log_dict(told: dict[str, Any], *_: Any, **__: Any) -> None:
        for name, value in told.items():
            log(name, value)

    def look(name: str, part: nn.Module, output: Any) -> None:
        for tensor in tensors(output):
            if not is_finite(tensor):
                outputs.append(named(name, part))
            elif tensor.requires_grad:
                tensor.register_hook(lambda grad: see(name, part, grad))

    def see(name: str, part: nn.Module, grad: Tensor) -> None:
        if not is_finite(grad):
            gradients.append(named(name, part))

    alone = trainer.world_size == 1  # the ranks' gradients meet while they flow
    with contextlib.ExitStack() as stack:
        cuda = [module.device] if module.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.enter_context(as_before(module, trained))
        stack.enter_context(instead(module, "log", log))
        stack.enter_context(instead(module, "log_dict", log_dict))
        if not alone:
            stack.enter_context(instead(module, "manual_backward", nothing))
        for part in steppers(module):
            stack.enter_context(instead(part, "step", nothing))
        for name, part in module.named_modules():
            if name:
                handle = part.register_forward_hook(
                    lambda part, _, output, name=name: look(name, part, output)
                )
                stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        # Numbers that are not finite break much; what was found until then counts.
        stack.enter_context(contextlib.suppress(Exception))
        module.on_train_batch_start(batch, batch_idx)  # the same chance
        with trainer.precision_plugin.train_step_context():
            loss: Any = module.training_step(batch, batch_idx)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        if isinstance(loss, Tensor) and alone and module.automatic_optimization:
            loss.backward()
    return Found(logged, next(iter(outputs), None), next(iter(gradients), None))


def tensors(value: Any) -> Iterator[Tensor]:
    """Of what a module gave, those that can be not finite."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def is_finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())


def named(name: str, part: nn.Module) -> str:
    return f"{name} ({type(part).__name__})"


def nothing(*_: Any, **__: Any) -> None:
    pass


def steppers(module: Trainee) -> list[Any]:
    """Optimisers and schedulers."""
    found: list[Any] = []
    for one in (module.optimizers(), module.lr_schedulers()):
        found += one if isinstance(one, list) else [one] * (one is not None)
    return found


@contextlib.contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """As an attribute of the instance, over the class's own."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def as_before(module: Trainee, trained: list[nn.Parameter]) -> Iterator[None]:
    """All that is trained is trained, whoever's turn it was; buffers and gradients are put back."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter, *_ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad, wanted in gradients:
            parameter.requires_grad_(wanted)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
