"""The average: its formula, what it covers, who sees it, and that the raw weights never notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor

import toy
from salon import checkpoint, config
from salon.callbacks.ema import EMA
from salon.callbacks.samples import Samples
from salon.callbacks.save import SaveLast


class Spy(Callback):
    """What the weights are after each batch, and during validation."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.raw.append(copy(pl_module))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(copy(pl_module))


def copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def painter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("painter."): v for k, v in state.items() if k.startswith("painter.")}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_closed_form_after_every_batch(accumulate: int) -> None:
    ema, spy, model = EMA(decay=0.3), Spy(), toy.Toy()
    start = copy(model)
    toy.fit(model, [ema, spy], batches=6, accumulate_grad_batches=accumulate)
    assert ema.updates == len(spy.raw) == 6

    decays = [0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3]  # (1 + n) / (10 + n), then the decay
    for name, average in ema.average.items():
        expected = start[f"painter.{name}"].double()
        for decay, raw in zip(decays, spy.raw, strict=True):
            expected = decay * expected + (1 - decay) * raw[f"painter.{name}"].double()
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(average, spy.raw[-1][f"painter.{name}"])


def test_only_what_sample_uses_is_averaged() -> None:
    ema = EMA(decay=0.9)
    toy.fit(toy.Toy(text=toy.clip()), [ema])
    # No judge, no text tower, and no counter of batches, which has no average.
    assert set(ema.average) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
    }  # fmt: skip
    assert all(value.dtype == torch.float32 for value in ema.average.values())


def test_training_is_the_same_with_it_and_without(tmp_path: Path) -> None:
    """Bit for bit, through validations and savings."""
    plain, averaged = toy.Toy(), toy.Toy()
    toy.fit(plain, batches=6, validate_every=2)
    save = SaveLast(path=tmp_path / "last.ckpt", every=2)
    toy.fit(averaged, [EMA(decay=0.9), save], batches=6, validate_every=2)
    assert_same(plain.state_dict(), averaged.state_dict())


def test_validation_sees_the_average_and_gives_the_weights_back() -> None:
    ema, spy, model = EMA(decay=0.9), Spy(), toy.Toy()
    toy.fit(model, [ema, spy], batches=4, validate_every=4)
    (seen,) = spy.validated
    for name, value in ema.average.items():
        assert torch.equal(seen[f"painter.{name}"], value)
        assert not torch.equal(seen[f"painter.{name}"], spy.raw[-1][f"painter.{name}"])
    assert torch.equal(seen["judge.weight"], spy.raw[-1]["judge.weight"])
    assert_same(copy(model), spy.raw[-1])


def test_a_validation_that_raises_gives_the_weights_back() -> None:
    ema, spy, model = EMA(decay=0.9), Spy(), toy.Toy(fail_at="validation")
    with pytest.raises(RuntimeError, match="told to fail"):
        toy.fit(model, [ema, spy])
    assert_same(copy(model), spy.raw[-1])


def test_samples_are_drawn_from_the_average(tmp_path: Path) -> None:
    ema, model = EMA(decay=0.9), toy.Toy()
    samples = Samples(folder=tmp_path / "run", prompts=["x"], number=1, seeds=[3])
    toy.fit(model, [ema, samples], batches=4, validate_every=4)
    pixels = {}
    for kind in ("raw", "average"):
        if kind == "average":
            model.painter.load_state_dict(ema.average, strict=False)
        after = Samples(folder=tmp_path / kind, prompts=["x"], number=1, seeds=[3])
        toy.trainer([after], batches=4, validate_every=4).validate(
            model, datamodule=toy.ToyData(), verbose=False
        )
        (file,) = (tmp_path / kind).iterdir()
        pixels[kind] = np.asarray(Image.open(file))
    (file,) = (tmp_path / "run").iterdir()
    shown = np.asarray(Image.open(file))
    assert np.array_equal(shown, pixels["average"])
    assert not np.array_equal(shown, pixels["raw"])


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    whole, straight = toy.Toy(), EMA(decay=0.9)
    toy.fit(whole, [straight], batches=6, validate_every=2)
    toy.fit(toy.Toy(), [EMA(decay=0.9), SaveLast(path=path, every=4)], batches=4)
    model, ema = toy.Toy(), EMA(decay=0.9)
    save = SaveLast(path=path, every=4)
    toy.fit(model, [ema, save], batches=6, validate_every=2, resume=path)
    assert ema.updates == straight.updates == 6
    assert_same(ema.average, straight.average)
    assert_same(model.state_dict(), whole.state_dict())


def test_a_checkpoint_holds_both_and_load_gives_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "ALLOWED", config.ALLOWED | {"toy.Toy"})
    path, ema, model = tmp_path / "last.ckpt", EMA(decay=0.9), toy.Toy()
    toy.fit(model, [ema, SaveLast(path=path, every=4)])
    contents = checkpoint.read(path)
    assert_same(contents["state_dict"], dict(model.state_dict()))
    assert_same(contents["ema"]["average"], ema.average)
    raw, averaged = checkpoint.load(path, ema=False), checkpoint.load(path, ema=True)
    assert_same(raw.state_dict(), model.state_dict())
    for name, value in ema.average.items():
        assert torch.equal(averaged.painter.state_dict()[name], value)
    assert torch.equal(averaged.judge.weight, model.judge.weight)


def test_a_run_that_began_without_it_can_go_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    toy.fit(toy.Toy(), [SaveLast(path=path, every=4)])
    saved = painter(checkpoint.read(path)["state_dict"])
    ema, spy, model = EMA(decay=0.9), Spy(), toy.Toy()
    toy.fit(model, [ema, spy, SaveLast(path=path, every=4)], batches=5, resume=path)
    assert ema.updates == 1
    after = painter(spy.raw[-1])["0.weight"]
    torch.testing.assert_close(ema.average["0.weight"], 0.1 * saved["0.weight"] + 0.9 * after)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_makes_no_sense(decay: float) -> None:
    with pytest.raises(ValueError, match=r"callbacks.ema.decay"):
        EMA(decay=decay)
