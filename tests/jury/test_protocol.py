"""Which image is judged by which prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from salon.jury.protocol import exhibits
from salon.types import Batch, Prompt


class Data:
    """A split of eight samples whose second and fifth pictures are broken."""

    batch_size = 2

    def has(self, split: str) -> bool:
        return split == "test"

    def prompts(self, split: str, limit: int) -> list[Prompt]:
        return [Prompt(f"caption {i}", None, f"key{i}") for i in range(8)][:limit]

    def batches(self, split: str, number: int) -> Iterator[Batch]:
        good = [0, 2, 3, 5, 6, 7]
        for first in range(0, min(2 * number, 6), 2):
            pair = good[first : first + 2]
            images = torch.stack([torch.full((3, 4, 4), i / 10) for i in pair])
            yield Batch(images, [""] * 2, [f"key{i}" for i in pair])


def test_image_i_is_what_prompt_i_describes() -> None:
    shown = exhibits(Data(), "test", 5)
    assert len(shown.real) == len(shown.prompts) == 5
    for image, prompt in zip(shown.real, shown.prompts, strict=True):
        assert prompt.caption == f"caption {round(float(image[0, 0, 0]) * 10)}"


def test_a_split_without_one_batch_is_a_message() -> None:
    class Empty(Data):
        def batches(self, split: str, number: int) -> Iterator[Batch]:
            return iter(())

    with pytest.raises(ValueError, match="fewer than 2 samples"):
        exhibits(Empty(), "test", 5)
