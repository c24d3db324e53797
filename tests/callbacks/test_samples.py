"""The sheets in samples/: the same prompts and seeds at every validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

import toy
from salon.callbacks.samples import Samples


class Asked(toy.Toy):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[str], list[int]]] = []

    def sample(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
        self.asked.append((list(captions), list(seeds)))
        return super().sample(captions, seeds)


def sheet(folder: Path, images_seen: int) -> np.ndarray:
    with Image.open(folder / f"images-{images_seen:010d}.png") as picture:
        assert picture.format == "PNG"
        assert picture.info["generated"] == "yes"
        return np.asarray(picture)


def test_the_same_prompts_and_seeds_at_every_validation(tmp_path: Path) -> None:
    model = Asked()
    callback = Samples(folder=tmp_path, prompts=None, number=2, seeds=[5, 6])
    toy.fit(model, [callback], batches=6, validate_every=2)
    first, second = toy.CAPTIONS[:2]
    assert model.asked == [([first, first, second, second], [5, 6, 5, 6])] * 3
    names = sorted(file.name for file in tmp_path.iterdir())
    seen = [2 * toy.BATCH, 4 * toy.BATCH, 6 * toy.BATCH]
    assert names == [f"images-{images:010d}.png" for images in seen]
    early, late = sheet(tmp_path, seen[0]), sheet(tmp_path, seen[2])
    assert early.shape == late.shape
    assert not np.array_equal(early, late)  # the model has learned in between


def test_the_same_weights_give_the_same_pixels(tmp_path: Path) -> None:
    for name in ("one", "two"):
        callback = Samples(folder=tmp_path / name, prompts=None, number=3, seeds=[0, 1])
        toy.fit(toy.Toy(), [callback], batches=2)
    seen = 2 * toy.BATCH
    assert np.array_equal(sheet(tmp_path / "one", seen), sheet(tmp_path / "two", seen))


def test_given_prompts_win(tmp_path: Path) -> None:
    model = Asked()
    callback = Samples(folder=tmp_path, prompts=["a horse", "a cow"], number=8, seeds=[0])
    toy.fit(model, [callback], batches=2)
    assert model.asked == [(["a horse", "a cow"], [0, 0])]


@pytest.mark.parametrize(("number", "seeds"), [(0, [0]), (2, [])])
def test_nothing_to_draw_is_a_mistake(tmp_path: Path, number: int, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=r"callbacks.samples.number=.*callbacks.samples=null"):
        Samples(folder=tmp_path, prompts=None, number=number, seeds=seeds)
