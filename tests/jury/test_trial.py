"""The jury's numbers on pictures that are known: right ones, wrong ones, copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import toy
from salon.jury import trial
from salon.metrics import oracle
from salon.shapes import prompts
from salon.shapes.render import render


def pictures(name: str, number: int) -> tuple[Tensor, list[dict[str, object]]]:
    """Renders that obey the prompts of a set, and what these ask."""
    asked = prompts.prompts(name, number, world_seed=0)
    pixels = np.stack([render(one.example, 32) for one in asked])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, [one.asked for one in asked]


def test_pictures_that_obey_score_one_and_each_others_prompts_chance() -> None:
    images, asked = pictures("seen", 40)
    told = trial.obeyed(oracle.read_all(images), asked)
    accuracy = told["prompt_accuracy"]
    assert (accuracy.value, accuracy.n) == (1.0, 40)
    assert accuracy.low == pytest.approx(0.912, abs=1e-3), "Wilson's, of 40 of 40"
    assert told["prompt_accuracy_chance"].value < 0.1
    assert told["malformed"].value == 0
    wrong = trial.obeyed(oracle.read_all(images.roll(1, 0)), asked)
    assert wrong["prompt_accuracy"].value < 0.1
    gray = trial.obeyed(oracle.read_all(torch.zeros_like(images)), asked)
    assert gray["prompt_accuracy"].value == 0


def test_distances_are_small_between_like_sets_and_grow_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    real, like = torch.randn(2, 300, 8, generator=generator)
    near, far = trial.distances(real, like), trial.distances(real, like + 1)
    assert far["fd"].value == pytest.approx(near["fd"].value + 8, abs=1.0)
    assert abs(near["fd_inf"].value) < near["fd"].value, "the bias of 300 pictures is taken off"
    assert near["kid"].low is not None
    assert near["kid"].low < 0 < (near["kid"].high or 0)
    assert (far["kid"].low or 0) > 0
    assert near["coverage"].value > 0.9 > 0.5 > far["coverage"].value
    assert near["fd"].n == 300
    few = trial.distances(real[:8], like[:8])
    assert set(few) == {"fd", "vendi"}, "what eight pictures cannot tell is not told"


def test_planted_copies_are_found_with_what_they_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test, made = torch.randn(3, 400, 16, generator=generator)
    fresh, _ = trial.copying(train, test, made)
    assert fresh["copies"].value < 0.04
    made[:40] = train[100:140] + 1e-3 * torch.randn(40, 16, generator=generator)
    told, found = trial.copying(train, test, made)
    assert 0.1 <= told["copies"].value < 0.14
    planted = {one.made: one.train for one in found if one.made < 40}
    assert planted == {i: 100 + i for i in range(40)}
    assert trial.copying(train, test[:50], made) == ({}, []), "too few to calibrate on"


def test_alignment_has_an_interval_over_prompts() -> None:
    tower = toy.clip()
    images = torch.rand(120, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions = [f"{toy.CAPTIONS[i % 4]} {i}" for i in range(120)]
    told = trial.aligned(images, captions, tower)
    score = told["clip_score"]
    assert score.n == 120
    assert score.low is not None
    assert score.low < score.value < (score.high or 0)
    assert 0 <= told["r_precision"].value < 0.2, "an untrained tower finds nothing"
    assert "r_precision" not in trial.aligned(images[:50], captions[:50], tower)
    assert trial.aligned(images, captions, tower) == told
