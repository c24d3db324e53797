"""The gate of the learned reader, and its agreement with the analytic oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from salon.config import build
from salon.jury.opinions import agree, legible
from salon.metrics import oracle
from salon.metrics.oracle import Reading, asked_of
from salon.shapes.cells import CHANNELS, OCCUPIED, labels
from salon.shapes.render import render
from salon.shapes.world import Object, Scene, draw_scene
from salon.types import Batch, Prompt


class Copies:
    """A reader that asks the oracle, and is wrong about pictures with a white background."""

    device = torch.device("cpu")

    def __init__(self, *, blind: bool) -> None:
        self.blind = blind

    def __call__(self, images: Tensor) -> Tensor:
        return torch.stack([logits(reading, self.blind) for reading in oracle.read_all(images)])


def logits(reading: Reading, blind: bool) -> Tensor:
    objects = tuple(Object(s.shape, s.color, s.size, s.x, s.y) for s in reading.objects)
    ground = reading.background or "gray"
    if blind and ground == "white":
        ground = "black"
    told = torch.from_numpy(labels(Scene(ground, objects))) * 20
    part = CHANNELS[OCCUPIED]
    told[part] = (told[part] / 20).clamp(1e-3, 1 - 1e-3).logit()
    return told


@pytest.fixture
def data(mini: Callable[..., DictConfig]) -> object:
    return build(mini("cvae/tiny", "data.resolution=32").data, "data")


@pytest.mark.parametrize("blind", [False, True])
def test_legible(data: object, blind: bool) -> None:
    splits = ["test", "heldout"]
    gate = legible(module=Copies(blind=blind), data=data, splits=splits, images=32, minimum=0.95)
    assert gate is not None
    assert gate.passed is not blind
    assert gate.value == 1 if not blind else 0.3 < gate.value < 0.95


class Split:
    """One split of white backgrounds, one of black ones; or of captions alone."""

    batch_size = 4

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact

    def has(self, split: str) -> bool:
        return split in ("val", "white", "black")

    def scenes(self, split: str) -> list[Scene]:
        item = Object("circle", "red", "large", 0.5, 0.5)
        return [Scene("white" if split == "white" else "black", (item,))] * 4

    def prompts(self, split: str, limit: int) -> list[Prompt]:
        asked = [asked_of(scene) if self.exact else None for scene in self.scenes(split)]
        return [Prompt("a caption", one, str(i)) for i, one in enumerate(asked)]

    def batches(self, split: str, number: int) -> list[Batch]:
        return [Batch(pictures(self.scenes(split)), ["a caption"] * 4, list("0123"))]


def pictures(scenes: list[Scene]) -> Tensor:
    pixels = np.stack([render(scene, 32) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize(
    ("splits", "value"),
    [(["white"], 0), (["black"], 1), (["black", "white"], 0), (["absent"], 1)],
)
def test_the_worst_split_counts(splits: list[str], value: float) -> None:
    gate = legible(
        module=Copies(blind=True), data=Split(exact=True), splits=splits, images=4, minimum=0.5
    )
    assert gate is not None
    assert gate.value == value


def test_captions_alone_can_not_be_judged() -> None:
    told = {"splits": ["white"], "images": 4, "minimum": 0.5}
    assert legible(module=Copies(blind=False), data=Split(exact=False), **told) is None


def test_agree() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, objects=1 + i % 2) for i in range(60)]
    white = np.mean([scene.background == "white" for scene in scenes])
    asked = [asked_of(scene) for scene in scenes]
    assert agree(Copies(blind=False), pictures(scenes), asked) == (1, 1, 0)
    found = agree(Copies(blind=True), pictures(scenes), asked)
    assert found.same == found.both_right == pytest.approx(1 - white)
    assert found.one_right == pytest.approx(white)
