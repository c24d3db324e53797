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
    """CPU seconds a batch, after the first `warm` ones and before the last `cool` ones."""

    def __init__(self, warm: int = 1, cool: int = 0) -> None:
        self.warm, self.cool = warm, cool
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> float:
        timed = self.ends[self.warm - 1 : len(self.ends) - self.cool]
        return (timed[-1] - timed[0]) / (len(timed) - 1)
