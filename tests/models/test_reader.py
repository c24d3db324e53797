"""The learned reader as a stage: what it sees, that it learns, and that it goes on where it was."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose
from scipy import ndimage

import toy
from conftest import MINI_DATA
from salon import checkpoint, run
from salon.callbacks.save import SaveLast
from salon.metrics import lenient, oracle
from salon.models.reader import (
    FIRST_VALIDATION,
    TOLD,
    CellNet,
    Reader,
    blurred,
    cells_right,
    cross_entropies,
)
from salon.shapes import world
from salon.shapes.cells import CELLS, CHANNELS, OCCUPIED, WIDTH, labels
from salon.shapes.world import draw_scene
from salon.types import Batch

pytestmark = pytest.mark.usefixtures("one_thread")


def made(*, channels: int = 8, blocks: int = 1, pairs: float = 0.5, lr: float = 1e-2) -> Reader:
    torch.manual_seed(0)
    return Reader(
        network=CellNet(image_size=16, channels=channels, blocks=blocks),
        pairs=pairs, held_out=0.5, blur=0.5, noise=0.05, fade=0.2,
        optimizer=partial(torch.optim.Adam, lr=lr), schedule=lambda *_: 1.0,
    )  # fmt: skip


def batch(number: int) -> Batch:
    return Batch(torch.zeros(number, 3, 4, 4), ["anything"] * number, [""] * number)


# -- what it is shown ------------------------------------------------------------------------------


def test_pictures_and_labels_are_of_the_same_scenes() -> None:
    module = made()
    module.network.image_size = 32
    images, told = module.draw(40, seed=7)
    assert images.shape == (40, 3, 32, 32)
    assert told.shape == (40, WIDTH, CELLS, CELLS)
    assert images.min() >= -1
    assert images.max() <= 1
    sure = told * 10
    sure[:, CHANNELS[OCCUPIED]] = told[:, CHANNELS[OCCUPIED]].clamp(1e-3, 1 - 1e-3).logit()
    for a, b in zip(oracle.read_all(images), lenient.decode(sure), strict=True):
        kinds = [sorted(tuple(seen[:3]) for seen in one.objects) for one in (a, b)]
        assert kinds[0] == kinds[1]
        assert a.background == b.background


@pytest.mark.parametrize(("pairs", "held_out"), [(0.0, 1.0), (1.0, 0.0)])
def test_shares_of_pairs_and_of_held_out_compositions(pairs: float, held_out: float) -> None:
    module = made()
    module.pairs, module.held_out, module.network.image_size = pairs, held_out, 32
    for reading in oracle.read_all(module.draw(30, seed=1)[0]):
        assert len(reading.objects) == 1 + pairs
        rare = any((seen.shape, seen.color) in world.HELD_OUT_COLORS for seen in reading.objects)
        assert rare == bool(held_out)


def test_every_batch_is_another_and_the_seed_decides_it() -> None:
    module = made()
    first, again, other = (module.draw(6, seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_and_validation_see_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seeds = made(), []
    draw = module.draw
    monkeypatch.setattr(module, "draw", lambda n, seed: seeds.append(seed) or draw(n, seed))
    module.log = lambda *_, **__: None
    for i in range(5):
        module.training_step(batch(2), i)
        module.validation_step(batch(2), i)
    train, val = seeds[::2], seeds[1::2]
    assert val == [FIRST_VALIDATION + i for i in range(5)]
    assert max(train) < FIRST_VALIDATION
    assert len(set(train)) == 5


def test_blur_is_a_gaussian_of_each_pictures_own_width() -> None:
    torch.manual_seed(0)
    images, sigma = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([0.0, 0.6, 1.2])
    found = blurred(images, sigma)
    torch.testing.assert_close(found[0], images[0], atol=1e-6, rtol=0)
    for i in (1, 2):
        s = float(sigma[i])
        expected = ndimage.gaussian_filter(
            images[i].double().numpy(), (0, s, s), mode="nearest", radius=4
        )
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-5)


def test_half_of_the_pictures_are_left_as_they_are() -> None:
    module = made()
    torch.manual_seed(0)
    images = torch.rand(200, 3, 16, 16)
    same = (module.distort(images) - images).abs().amax((1, 2, 3)) < 1e-5
    assert 0.4 < same.float().mean() < 0.6


# -- the loss --------------------------------------------------------------------------------------


def told_of(number: int = 8) -> torch.Tensor:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, objects=1 + i % 2) for i in range(number)]
    return torch.from_numpy(np.stack([labels(scene) for scene in scenes]))


def perfect(told: torch.Tensor) -> torch.Tensor:
    sure = told * 30
    sure[:, CHANNELS[OCCUPIED]] = told[:, CHANNELS[OCCUPIED]].clamp(1e-6, 1 - 1e-6).logit()
    return sure


def test_the_loss_of_who_knows_nothing() -> None:
    told = told_of()
    expected = sum(np.log(n) for n in (2, 4, 6, 2, 3))
    loss = cross_entropies(torch.zeros_like(told), told)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_what_is_said_of_empty_cells_costs_nothing_but_of_occupied_ones() -> None:
    told = told_of()
    right = perfect(told)
    least = cross_entropies(right, told)
    empty = (told[:, CHANNELS[OCCUPIED]] == 0).expand(-1, 4, -1, -1)
    careless = right.clone()
    careless[:, CHANNELS["shape"]][empty] = torch.randn(int(empty.sum())) * 9
    torch.testing.assert_close(cross_entropies(careless, told), least)
    for word, share in cells_right(right, told).items():
        assert share == 1, word
    for word in TOLD:
        wrong = right.clone()
        wrong[:, CHANNELS[word]] = wrong[:, CHANNELS[word]].flip(1)
        assert cross_entropies(wrong, told) > least + 1
        shares = cells_right(wrong, told)
        assert shares.pop(word) < 0.8
        assert {float(share) for share in shares.values()} == {1.0}


# -- as a stage -----------------------------------------------------------------------------------


def test_it_learns() -> None:
    module = made(channels=24, blocks=2, pairs=0.0, lr=8e-3)
    module.log = lambda *_, **__: None
    optimizer = module.make_optimizer(module.parameters())
    losses = []
    for _ in range(90):
        loss = module.training_step(batch(16), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.4 * np.mean(losses[:10])
    module.eval()
    images, told = module.draw(100, FIRST_VALIDATION)
    with torch.no_grad():
        shares = cells_right(module(images), told)
    assert shares[OCCUPIED] > 0.95
    assert shares["background"] > 0.95
    assert shares["color"] > 0.9
    assert shares["size"] > 0.8
    assert shares["shape"] > 0.45  # at 16 px, and after a hundred batches; by chance 0.25


def test_features_are_of_each_picture_alone_whatever_its_size() -> None:
    module = made().eval()
    torch.manual_seed(1)
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    found = module.features(images)
    assert found.shape == (5, 8)
    torch.testing.assert_close(module.features(images[2:3])[0], found[2])
    doubled = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(module.features(doubled), found)
    assert (found[0] - found[1]).abs().max() > 1e-3
    with torch.no_grad():  # they are what the answer is read from, the last layer's input
        weight, bias = module.network.conv_out.weight[:, :, 0, 0], module.network.conv_out.bias
        mean = module(images).mean((2, 3))
    torch.testing.assert_close(found @ weight.T + bias, mean, atol=1e-5, rtol=1e-4)


def test_cells_divide_the_picture() -> None:
    with pytest.raises(ValueError, match=r"image_size=40; expected a multiple of 16"):
        CellNet(image_size=40, channels=8, blocks=1)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, half, rest = made(), made(), made()
    toy.fit(whole, batches=4)
    path = tmp_path / "last.ckpt"
    toy.fit(half, [SaveLast(path=path, every=2)], batches=2)
    toy.fit(rest, [SaveLast(path=path, every=2)], batches=4, resume=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(rest.state_dict()[name], value), name
    assert not torch.equal(half.network.conv_in.weight, whole.network.conv_in.weight)


def test_it_says_how_many_cells_are_right() -> None:
    rows = toy.Rows()
    toy.fit(made(), loggers=[rows])
    [first, *_] = rows.having("val/loss")
    assert {"val/occupied", *(f"val/{word}" for word in TOLD)} <= set(first)


def test_a_run_of_its_own(hydra_conf: None, mini_root: Path, tmp_path: Path) -> None:
    """Trained by its config on the run's data, judged by its gate, and rebuilt from its file."""
    cfg = compose(
        "train",
        [
            "model=reader/tiny", *MINI_DATA, "data.resolution=32", f"data.root={mini_root}/data",
            "model.network.channels=8", "model.network.blocks=1", "batch_size=8", "logger=csv",
            "budget={batches: 2, validate_every: 2, checkpoint_every: 2}", "gate.images=16",
        ],
    )  # fmt: skip
    run.train(cfg, tmp_path)
    module = checkpoint.load(tmp_path)
    assert isinstance(module, Reader)
    assert len(lenient.decode(module(module.draw(3, seed=0)[0]))) == 3
    gate = json.loads((tmp_path / "summary.json").read_text())["gate"]
    assert gate["name"] == "share of real pictures read right"
    assert gate["passed"] is False
