"""CLIP score by hand, with a tower of 6 dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toy
from salon.metrics.clip_score import clip_score
from salon.text.clip import ClipTower


@pytest.fixture(scope="module")
def tower() -> ClipTower:
    return toy.clip(seed=1)  # for some, no image is near to any caption


@pytest.fixture(scope="module")
def images(tower: ClipTower) -> Tensor:
    """Each caption's nearest of many: an untrained tower finds most opposed, which scores 0."""
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(0, 256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
    seen = F.normalize(tower.encode_images(many.double().div(127.5).sub(1).float()), dim=1)
    told = F.normalize(torch.cat([tower([caption]).pooled for caption in toy.CAPTIONS]), dim=1)
    return many[(seen @ told.T).argmax(0)]  # each caption's nearest


def cosines(tower: ClipTower, images: Tensor) -> Tensor:
    seen = tower.encode_images(images.double().div(127.5).sub(1).float())
    told = torch.cat([tower([caption]).pooled for caption in toy.CAPTIONS])
    return (F.normalize(seen, dim=1) * F.normalize(told, dim=1)).sum(1)


def test_the_formula(tower: ClipTower, images: Tensor) -> None:
    score = clip_score(tower)
    score.update(images[:3], toy.CAPTIONS[:3])
    score.update(images[3:], toy.CAPTIONS[3:])
    each = cosines(tower, images)
    assert (each > 0).all()
    assert float(score.compute()) == pytest.approx(float(100 * each.mean()), rel=1e-5)


def test_each_image_is_clamped_and_not_the_mean(
    tower: ClipTower, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image that says its caption and one that says the opposite: 50, not 0."""
    told = tower(toy.CAPTIONS[:1]).pooled
    monkeypatch.setattr(tower, "encode_images", lambda images: torch.cat([3 * told, -told]))
    score = clip_score(tower)
    score.update(images[:2], [toy.CAPTIONS[0]] * 2)
    assert float(score.compute()) == pytest.approx(50, rel=1e-5)


def test_in_full_precision_under_autocast(tower: ClipTower, images: Tensor) -> None:
    plain, under = clip_score(tower), clip_score(tower)
    plain.update(images, toy.CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        under.update(images, toy.CAPTIONS)
    assert float(plain.compute()) == float(under.compute())


def test_the_tower_is_neither_copied_nor_trained(tower: ClipTower) -> None:
    score = clip_score(tower)
    assert not list(score.parameters())
    assert not score.state_dict()
