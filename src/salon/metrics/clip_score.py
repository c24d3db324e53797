"""CLIP score (Hessel et al. 2021) through torchmetrics, with an open_clip tower.

The mean of 100 max(cos(image, caption), 0). A run's own tower also told the model what to draw, so
its score flatters every family alike; a pretrained tower's score is the one to publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.multimodal import CLIPScore

from salon.text.clip import ClipTower


class _Model(nn.Module):
    """The face of a transformers CLIP that torchmetrics asks for."""

    def __init__(self, tower: ClipTower) -> None:
        super().__init__()
        self._tower = [tower]  # not a submodule: it is neither moved nor copied
        longest = SimpleNamespace(max_position_embeddings=2**31)  # the tower cuts, and says so
        self.config = SimpleNamespace(text_config=longest)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self._tower[0].encode_images(pixel_values)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        return input_ids


class _Processor:
    """Captions go through our tower's memory here; torchmetrics then only passes them on."""

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower

    def __call__(
        self, text: Sequence[str] | None = None, images: Sequence[Tensor] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        if images is not None:
            pixels = torch.stack([image.float() for image in images])
            return {"pixel_values": pixels / 127.5 - 1}
        assert text is not None
        pooled = self.tower(text).pooled
        return {"input_ids": pooled, "attention_mask": torch.ones(len(pooled), 1)}


def clip_score(tower: ClipTower) -> CLIPScore:
    """A metric over (uint8 images (N, 3, H, W), captions)."""
    # torchmetrics types a transformers model; the face is all that it uses.
    face: Any = lambda: (_Model(tower), _Processor(tower))  # noqa: E731
    metric = CLIPScore(model_name_or_path=face)
    metric.sync_on_compute = False
    return metric
