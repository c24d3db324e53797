"""An exponential moving average of what `sample` uses, and of nothing else.

theta' <- d theta' + (1 - d) theta after every training batch, with the warm-up of Stable Diffusion,
d = min(decay, (1 + n) / (10 + n)) after n updates. Validation sees the average; the raw weights are
back before training goes on, and are what a checkpoint's `state_dict` holds. The average lies in
the checkpoint beside them.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from salon.models.base import TextToImage


class EMA(Callback):
    """Does nothing for a model that is no `TextToImage` (a stage)."""

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}; expected at least 0 and below 1")
        self.decay, self.updates = decay, 0
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._trained: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, TextToImage):
            return
        state = pl_module.averaged.state_dict()
        if not self.average:
            # In float32: at a decay of 0.9999 an update is below bfloat16's last digit.
            self.average = {k: v.detach().clone().float() for k, v in state.items() if _floats(v)}
        self.average = {k: placed(v, state[k]) for k, v in self.average.items()}
        self._trained = [state[k] for k in self.average]  # which share the weights' memory

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not isinstance(pl_module, TextToImage):
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = [weight.float() for weight in self._trained]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    # -- validation sees the average ----------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self._raw and isinstance(pl_module, TextToImage):
            state = pl_module.averaged.state_dict()
            self._raw = {name: state[name].clone() for name in self.average}
            pl_module.averaged.load_state_dict(self.average, strict=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore(pl_module)

    def _restore(self, pl_module: LightningModule) -> None:
        if self._raw and isinstance(pl_module, TextToImage):
            pl_module.averaged.load_state_dict(self._raw, strict=False)
            self._raw = {}

    # -- checkpoints --------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        assert not self._raw, "a checkpoint is never written while validation holds the average"
        if self.average:
            checkpoint["ema"] = {"average": whole(self.average), "updates": self.updates}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if "ema" in checkpoint:
            self.updates = checkpoint["ema"]["updates"]
            self.average = {k: v.clone() for k, v in checkpoint["ema"]["average"].items()}


def placed(value: Tensor, like: Tensor) -> Tensor:
    """On the device, and in the shards, of another tensor."""
    value = value.to(like.device)
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor assembled from its shards; all ranks have to ask."""
    return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}


def _floats(value: Tensor) -> bool:
    return value.is_floating_point()
