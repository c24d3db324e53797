"""The contracts: what everything trained here shares, and what every text-to-image family offers.

The clock. One tick is one training batch, in every family, whatever the number of optimisers:
Lightning's `global_step` counts optimiser steps, so nothing here looks at it.

Chance. Before every batch the generators are seeded with (seed, tick, rank), so a resumed run
draws what the uninterrupted one would have drawn; before every validation with the same seed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from salon.text.base import TextTower
from salon.types import Batch, Text

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Schedule = Callable[[int, int], float]  # (batches seen, batches in the budget) -> factor
NEVER = 2**40  # batches of a run that seconds or operations end, as long as its pace is unknown


class Trainee(LightningModule):
    """What everything that is trained here shares: optimiser, clock, chance, recipe."""

    def __init__(self, *, optimizer: MakeOptimizer, schedule: Schedule) -> None:
        super().__init__()
        self.make_optimizer, self.schedule = optimizer, schedule
        self.seed = 0
        self.validated_at = -1  # batches that were done at the last validation
        self.expected: int | None = None  # batches that seconds or operations will allow
        # What a checkpoint needs to rebuild this module; `salon.checkpoint` reads and writes it.
        self.recipe: dict[str, Any] = {}
        self._frozen: list[nn.Module] = []
        self._norm: Tensor | None = None

    # -- parts that are used and not trained ---------------------------------------------------

    def keep_frozen(self, *modules: nn.Module) -> None:
        for module in modules:
            module.requires_grad_(False).eval()
        self._frozen.extend(modules)

    def train(self, mode: bool = True) -> Trainee:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    # -- the clock ----------------------------------------------------------------------------

    @property
    def batches_seen(self) -> int:
        """Training batches that are done, on each rank."""
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    @property
    def images_seen(self) -> int:
        """Over all ranks."""
        return self.batches_seen * self.trainer.datamodule.batch_size * self.trainer.world_size  # type: ignore[attr-defined]

    @property
    def budget(self) -> int:
        """Batches that the run will have at its end; where seconds or operations may end it
        sooner, as many as at the pace so far."""
        limit = int(self.trainer.limit_train_batches or 0)
        return limit if self.expected is None else min(limit, self.expected)

    @property
    def period(self) -> int:
        """Batches after which the kinds of batch repeat; the operations of so many are counted."""
        return 1

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        torch.manual_seed(chance(self.seed, self.batches_seen, self.global_rank))

    def on_validation_start(self) -> None:
        # The same draws each time: numbers that may be compared, also where a run goes on with it.
        torch.manual_seed(chance(0, self.global_rank))

    def on_validation_end(self) -> None:
        self.validated_at = self.batches_seen

    @property
    def parts(self) -> dict[str, list[nn.Module]]:
        """Whose costs are told apart, by name."""
        return {name: [part] for name, part in self.named_children()}

    # -- what it can be fed --------------------------------------------------------------------

    @property
    def stride(self) -> int | None:
        """What the sides of training pictures must divide by, whatever their proportions; None:
        only squares of the data's resolution will do."""
        return None

    def encoders(self) -> dict[str, nn.Module]:
        """Frozen networks by name, where what they make of the data may be computed once, before
        the training (`Latents` in place of `Batch`); none where training needs the pictures."""
        return {}

    # -- on several devices, and compiled ------------------------------------------------------

    in_turn = False  # whether a loss leaves out parameters that another loss trains

    @property
    def networks(self) -> list[nn.Module]:
        """What is trained and run through its `forward`, so that it can be compiled and sharded."""
        return []

    @property
    def shards(self) -> list[nn.Module]:
        """What each device can hold a part of, inner modules first; none where every device needs
        the whole."""
        return self.networks

    @property
    def sharded(self) -> bool:
        """Whether all ranks have to run it together."""
        return any(isinstance(module, FSDPModule) for module in self.modules())

    def configure_model(self) -> None:
        """Lightning calls it once the devices have met; the mesh is there with trainer=fsdp."""
        if self._device_mesh is not None:
            for module in self.shards:
                if not isinstance(module, FSDPModule):
                    fully_shard(module, mesh=self._device_mesh["data_parallel"])

    # -- optimisation -------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        batches = self.trainer.accumulate_grad_batches  # for each step of the scheduler
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(step * batches, self.budget))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_before_backward(self, loss: Tensor) -> None:
        self._norm = None

    def gradient_norm(self, optimizer: Optimizer | LightningOptimizer) -> Tensor:
        """() of the gradients that `optimizer` is about to follow, before clipping; computed once
        for each backward pass. Of shards it is one rank's share, to be asked for by all ranks."""
        if self._norm is None:
            weights = (p for group in optimizer.param_groups for p in group["params"])
            self._norm = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        return self._norm

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self._norm is None or not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:  # known already: somebody has asked for it
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, self._norm)

    def own_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The Trainer's options, less what this module sees to itself.

        Raises ValueError for an option that it cannot follow.
        """
        return options

    # -- checkpoints --------------------------------------------------------------------------

    def elsewhere(self) -> list[str]:
        """Prefixes of weights that are loaded from where they came, and not from our checkpoint."""
        return [f"{name}." for name, part in self.named_modules() if getattr(part, "source", None)]

    @property
    def strict_loading(self) -> bool:
        return not self.elsewhere()

    @strict_loading.setter
    def strict_loading(self, value: bool) -> None:
        raise AttributeError("what is strict follows from the parts: see `elsewhere`")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["salon"] = self.recipe
        prefixes = tuple(self.elsewhere())
        if prefixes:
            state = checkpoint["state_dict"]
            kept = {name: value for name, value in state.items() if not name.startswith(prefixes)}
            checkpoint["state_dict"] = kept


class TextToImage(Trainee, ABC):
    """The contract that all families share."""

    text: TextTower
    resolution: int
    SETTINGS: tuple[str, ...] = ()  # attributes that change how a trained model samples

    @property
    def settings(self) -> dict[str, Any]:
        """How this model samples; part of every picture's provenance."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def set_sampling(self, **settings: Any) -> None:
        """Change how a trained model samples. Raises ValueError for a value that makes no sense."""
        assert settings.keys() <= set(self.SETTINGS), settings
        for name, value in settings.items():
            setattr(self, name, value)

    @property
    @abstractmethod
    def averaged(self) -> nn.Module:
        """What training changes and `sample` uses: the part that an EMA averages."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Of the standard normal noise that one image is drawn from."""

    @abstractmethod
    def paint(self, z: Tensor, text: Text) -> Tensor:
        """Images (N, 3, H, W), about [-1, 1], from z (N, *latent_shape); image i from (z i, text i)
        alone."""

    @torch.no_grad()
    def sample(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) float32 in [-1, 1].

        Image i depends on (caption i, seed i) alone, whatever else is in the batch.

        Raises ValueError where there is no caption, or not one seed for each.
        """
        if not captions:
            raise ValueError("no prompt to draw; give at least one: prompts=['a red circle']")
        if len(captions) != len(seeds):
            raise ValueError(f"{len(captions)} captions and {len(seeds)} seeds; one seed for each")
        training = self.training
        self.eval()
        try:
            z = noise(seeds, self.latent_shape, self.device)
            return self.paint(z, self.text(captions)).float().clamp(-1, 1)
        finally:
            self.train(training)


def sample_in_batches(
    model: TextToImage, captions: Sequence[str], seeds: Sequence[int], *, batch_size: int
) -> Iterator[Tensor]:
    """`sample` in pieces of at most `batch_size`, on the CPU, in order."""
    for first in range(0, len(captions), batch_size):
        piece = slice(first, first + batch_size)
        yield model.sample(captions[piece], seeds[piece]).cpu()


def noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """One standard normal (*shape) for each seed, (N, *shape).

    Drawn on the CPU, so that a seed means the same picture on every device.
    """
    drawn = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(device)


def chance(*numbers: int) -> int:
    """One seed from several numbers, so that neighbouring ones give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
