"""What benchmarks of whole trainings share: batches in memory, and a watch on the batches."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import DataLoader

from salon.types import Batch


class InMemory(LightningDataModule):
    def __init__(self, batches: list[Batch]) -> None:
        super().__init__()
        self.given, self.batch_size = batches, len(batches[0].captions)

    def train_dataloader(self) -> Any:
        return DataLoader(self.given, batch_size=None)  # type: ignore[arg-type]


class Stopwatch(Callback):
    """CPU seconds a batch, after the first `warm` ones."""

    def __init__(self, warm: int = 1) -> None:
        self.warm = warm
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[self.warm - 1]) / (len(self.ends) - self.warm)
