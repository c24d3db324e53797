"""CLIP score (Hessel et al. 2021) as a torchmetrics metric, with an open_clip tower.

The mean over images of 100 max(cos(image, caption), 0). torchmetrics' own CLIPScore clamps the mean
and not each image's score, and asks for a transformers model. A run's own tower also told the model
what to draw, so its score flatters every family alike; a pretrained tower's score is the one to
publish.

N images, E the width of the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from salon.text.clip import ClipTower


class ClipScore(Metric):
    total: Tensor
    count: Tensor

    def __init__(self, tower: ClipTower) -> None:
        super().__init__(sync_on_compute=False)
        self._tower = [tower]  # not a submodule: it is neither moved nor copied
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor, captions: Sequence[str]) -> None:
        """Images uint8 (N, 3, H, W), and the caption of each."""
        tower = self._tower[0]
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            seen = tower.encode_images(images.float() / 127.5 - 1)  # (N, E)
            told = tower(captions).pooled  # (N, E)
        scores = 100 * F.cosine_similarity(seen.float(), told.float()).clamp(min=0)  # (N)
        self.total += scores.sum()
        self.count += len(scores)

    def compute(self) -> Tensor:
        return self.total / self.count


def clip_score(tower: ClipTower) -> ClipScore:
    """A metric over (uint8 images (N, 3, H, W), captions)."""
    return ClipScore(tower)
