"""The jury's numbers during training: their names, and what is drawn for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

import toy
from salon.callbacks.ema import EMA
from salon.callbacks.quality import Quality
from salon.jury.protocol import exhibits, verdict
from salon.metrics import distances

TOWER = partial(distances.tower)


def measured(*, scenes: bool = True, images: int = 6) -> tuple[list[dict[str, float]], toy.Toy]:
    model, rows = toy.Toy(text=toy.clip()), toy.Rows()
    quality = Quality(images=images, batch_size=4, distance=TOWER)
    toy.fit(model, [quality], loggers=[rows], data=toy.ToyData(scenes=scenes))
    return rows.having("quality/images"), model


def test_the_row_of_a_validation() -> None:
    rows, model = measured()
    assert len(rows) == 2
    for row in rows:
        assert row["quality/images"] == 6
        assert "quality/fd_clip" in row
        assert "quality/fid" not in row  # that name is for Inception's features
        for name in ("prompt_accuracy", "prompt_accuracy_chance", "prompt_accuracy_real"):
            assert 0 <= row[f"quality/{name}"] <= 1
        assert 0 <= row["quality/clip_score"] <= 100
        assert all(math.isfinite(value) for value in row.values())
    # For sweeps, which read an objective from there.
    told = model.trainer.callback_metrics
    assert float(told["quality/fd_clip"]) == pytest.approx(rows[-1]["quality/fd_clip"])


def test_no_accuracy_where_nobody_described_the_prompts() -> None:
    rows, _ = measured(scenes=False)
    assert rows
    assert not [name for row in rows for name in row if "accuracy" in name]


def test_image_i_is_drawn_from_prompt_i_and_seed_i_by_the_average() -> None:
    """In pieces of 4 as in pieces of 6; and the numbers are about those very images."""
    asked: list[tuple[list[str], list[int]]] = []

    class Asked(toy.Toy):
        def sample(self, captions: Sequence[str], seeds: Sequence[int]) -> Tensor:
            asked.append((list(captions), list(seeds)))
            return super().sample(captions, seeds)

    model, rows, ema = Asked(text=toy.clip()), toy.Rows(), EMA(decay=0.9)
    quality = Quality(images=6, batch_size=4, distance=TOWER)
    toy.fit(model, [ema, quality], validate_every=4, loggers=[rows])
    captions = (toy.CAPTIONS * 2)[:6]
    assert asked == [(captions[:4], [0, 1, 2, 3]), (captions[4:], [4, 5])]

    data = toy.ToyData()
    model.painter.load_state_dict(ema.average, strict=False)
    shown = exhibits(data, "val", 6)
    expected = verdict(model.sample(captions, range(6)), shown, model.text, TOWER)
    (row,) = rows.having("quality/images")
    for name, value in expected.items():
        assert row[f"quality/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_real_images_judged_as_drawn_are_at_distance_zero() -> None:
    shown = exhibits(toy.ToyData(), "val", 6)
    told = verdict(shown.real, shown, toy.clip(), TOWER)
    assert told["fd_clip"] == pytest.approx(0, abs=1e-4)
    assert told["prompt_accuracy"] == told["prompt_accuracy_real"]


def test_fewer_than_two_images_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"callbacks.quality.images=1.*callbacks.quality=null"):
        Quality(images=1, batch_size=4, distance=TOWER)


def test_a_tower_that_sees_no_images_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="NoText, which sees no images"):
        toy.fit(toy.Toy(), [Quality(images=2, batch_size=2, distance=TOWER)])


def test_the_generators_of_training_do_not_notice() -> None:
    plain, measured_too = toy.Toy(text=toy.clip()), toy.Toy(text=toy.clip())
    toy.fit(plain)
    toy.fit(measured_too, [Quality(images=4, batch_size=4, distance=TOWER)])
    assert torch.equal(plain.painter[0].weight, measured_too.painter[0].weight)
