"""The reader's labels decode to the scene that they were made from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from salon.metrics import lenient, oracle
from salon.metrics.lenient import agreement, decode
from salon.metrics.oracle import Reading, Seen, asked_of, judge
from salon.shapes.cells import CELLS, CHANNELS, OCCUPIED, WIDTH, WORDS, labels
from salon.shapes.prompts import prompts
from salon.shapes.world import GAP, Object, Scene, draw_scene

RNG = np.random.default_rng(0)
SCENES = [draw_scene(RNG, objects=1 + i % 2, held_out_only=i % 4 < 2) for i in range(300)]
SCENES += [one.example for one in prompts("count_extrapolation", 60, world_seed=0)]


def perfect(scenes: list[Scene], sure: float = 0.999) -> Tensor:
    """Logits of a reader that makes no mistake."""
    told = torch.from_numpy(np.stack([labels(scene) for scene in scenes])).double()
    logits = told * 10
    part = CHANNELS[OCCUPIED]
    logits[:, part] = told[:, part].clamp(1 - sure, sure).logit()
    return logits.float()


def test_perfect_labels_give_the_scene_back() -> None:
    readings = decode(perfect(SCENES))
    told = judge(readings, [asked_of(scene) for scene in SCENES])
    assert told.pop("malformed") == 0
    assert set(told.values()) == {1.0}
    for scene, reading in zip(SCENES, readings, strict=True):
        found = {(s.shape, s.color): (s.x, s.y) for s in reading.objects}
        for o in scene.objects:
            np.testing.assert_allclose(found[o.shape, o.color], (o.x, o.y), atol=0.01)


def test_the_grid_is_finer_than_the_gap() -> None:
    assert 1 / CELLS < GAP
    channels = [number for part in CHANNELS.values() for number in range(WIDTH)[part]]
    assert channels == list(range(WIDTH))
    assert {word: len(range(WIDTH)[part]) for word, part in CHANNELS.items()} == {
        word: len(words) for word, words in WORDS.items()
    }


ONE = Scene("gray", (Object("circle", "red", "small", 0.3, 0.5),))


def test_who_is_unsure_says_so() -> None:
    logits = perfect([ONE])
    for word in ("shape", "color", "size"):
        torn = logits.clone()
        torn[:, CHANNELS[word]] = 0
        assert decode(torn)[0]._replace(background=None) == Reading(None, (), 1)
    torn = logits.clone()
    torn[:, CHANNELS["background"]] = 0
    assert decode(torn)[0].background is None
    assert len(decode(torn)[0].objects) == 1


def test_specks_are_ignored() -> None:
    logits = perfect([ONE])
    plain = decode(logits)
    logits[:, CHANNELS[OCCUPIED], 13, 13] = 6
    assert decode(logits)[0].objects == plain[0].objects
    assert decode(logits)[0].malformed == 0
    logits[:, CHANNELS[OCCUPIED], 12:14, 11:14] = 6
    assert decode(logits)[0].malformed == 1


def test_the_background_is_read_around_the_objects() -> None:
    scene = Scene("black", (Object("square", "cyan", "large", 0.5, 0.5),))
    logits = perfect([scene])
    inside = logits[0, CHANNELS[OCCUPIED]][0] > 0
    logits[0, CHANNELS["background"], inside] = torch.tensor([90.0, 0, 0])[:, None]
    assert decode(logits)[0].background == "black"


def test_labels_of_another_world_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 16, 8, 8\); expected \(N, 16, 16, 16\)"):
        decode(torch.zeros(2, 16, 8, 8))


def test_pictures_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lenient, "BATCH", 7)
    logits = perfect(SCENES[:20])
    sizes = []

    def reader(piece: Tensor) -> Tensor:
        sizes.append(len(piece))
        return logits[piece[:, 0, 0, 0].long()]

    images = torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, 4, 4)
    assert lenient.read_all(reader, images) == decode(logits)
    assert sizes == [7, 7, 6]


def test_agreement() -> None:
    seen = Seen("circle", "red", "small", 0.5, 0.5, 1.0)
    moved = Reading("gray", (seen._replace(x=0.4, fit=0.8),), 0)
    here = Reading("gray", (seen,), 0)
    others = [
        Reading("gray", (seen._replace(color="blue"),), 0), Reading("white", (seen,), 0),
        here._replace(malformed=1), Reading("gray", (seen, seen), 0),
    ]  # fmt: skip
    right = [(True, True), (True, False), (False, True), (False, False), (True, False)]
    assert agreement([here] * 5, [moved, *others], right) == (0.2, 0.2, 0.6)


def test_an_average_of_two_is_the_oracles_to_refuse() -> None:
    """What a reading is, is the same for both."""
    assert isinstance(decode(perfect([ONE]))[0], oracle.Reading)
