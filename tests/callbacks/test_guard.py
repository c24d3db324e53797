"""Numbers that are not finite: which are caught, where they begin, and that nothing changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

import toy
from salon.callbacks.ema import EMA
from salon.callbacks.guard import Diverged, Guard
from salon.callbacks.replay import Found, replay
from salon.callbacks.save import SaveLast
from salon.types import Batch

NAN, INF = float("nan"), float("inf")


class Root(nn.Module):
    """Finite at 0, and its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).sqrt()


class Breaking(toy.Toy):
    """Breaks in one batch: its output, its loss or its gradient."""

    def __init__(self, how: str = "", *, at: int = 3) -> None:
        super().__init__()
        self.how, self.at, self.root = how, at, Root()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        broken = self.how if batch_idx + 1 == self.at else ""
        flat = batch.images.flatten(1)  # (N, P)
        if broken == "output":
            self.painter[0].bias.data[1] = NAN
        told = self.judge(flat + torch.rand(len(flat), 1))
        loss = (self.painter(flat) - flat).square().mean() + told.square().mean()
        if broken == "gradient":
            loss = loss + self.root(told).mean()
        if broken == "loss":
            loss = loss * INF
        self.log("train/loss", loss)
        return loss


class Two(Breaking):
    """Two optimisers that step in turns, the first of them before the second one's loss."""

    def __init__(self, how: str = "", *, at: int = 3) -> None:
        super().__init__(how, at=at)
        self.automatic_optimization = False
        self.stepped: list[str] = []

    def configure_optimizers(self) -> Any:
        parts = (self.judge, self.painter)
        return [self.make_optimizer(part.parameters()) for part in parts], []

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers()
        flat = batch.images.flatten(1)  # (N, P)
        broken = self.how if batch_idx + 1 == self.at else ""
        for name, part, optimizer in zip("dg", (self.judge, self.painter), optimizers, strict=True):
            optimizer.zero_grad()
            if broken == name:
                part.get_submodule("" if name == "d" else "0").bias.data[0] = NAN
            others = [p for p in self.parameters() if p.requires_grad]
            others = [p for p in others if all(p is not own for own in part.parameters())]
            for parameter in others:
                parameter.requires_grad_(False)
            loss = part(flat).square().mean()
            self.manual_backward(loss)
            optimizer.step()
            for parameter in others:
                parameter.requires_grad_(True)
            self.stepped.append(name)
            self.log(f"train/{name}_loss", loss)


def guard(tmp_path: Path, every: int | None = None) -> Guard:
    return Guard(folder=tmp_path / "diverged", go_on="resume=RUN", every=every)


def report(tmp_path: Path) -> dict[str, Any]:
    (file,) = (tmp_path / "diverged").glob("*.json")
    told: dict[str, Any] = json.loads(file.read_text())
    return told


@pytest.mark.parametrize(
    ("how", "says", "output", "gradient"),
    [
        (
            "output",
            "train/loss is nan; the first output .* is painter.0 .Linear.'s",
            "painter.0",
            "",
        ),
        ("loss", "train/loss is inf; the first gradient", "", "painter.1"),
        (
            "gradient",
            "the first gradient that is not finite is at the output of judge",
            "",
            "judge",
        ),
    ],
)
def test_where_it_begins(how: str, says: str, output: str, gradient: str, tmp_path: Path) -> None:
    model, callbacks = Breaking(how), [guard(tmp_path), SaveLast(path=tmp_path / "l.ckpt", every=1)]
    with pytest.raises(Diverged, match=f"diverged in batch 3: .*{says}") as raised:
        toy.fit(model, callbacks, batches=5)
    assert str(tmp_path / "diverged") in str(raised.value)
    assert "a lower learning rate (now 0.1)" in str(raised.value)
    assert "trainer.gradient_clip_val=1" in str(raised.value)
    told = report(tmp_path)
    assert (told["first_output"] or "").startswith(output)
    assert bool(told["first_output"]) == bool(output)
    if gradient:
        assert told["first_gradient"].startswith(gradient)
    assert told["batch"] == 3
    assert told["keys"] == [f"2-{i}" for i in range(toy.BATCH)]
    assert told["captions"] == toy.CAPTIONS
    kept = torch.load(tmp_path / "diverged" / "batch_3.pt", weights_only=True)
    assert torch.equal(kept["images"], toy.batch(2).images)
    assert float(told["ranges"]["images"]["max"]) == float(kept["images"].max())


@pytest.mark.parametrize(("how", "steps"), [("d", "dgdg"), ("g", "dgdgd")])
def test_the_step_that_would_spoil_the_weights_is_not_taken(
    how: str, steps: str, tmp_path: Path
) -> None:
    model = Two(how)
    with pytest.raises(Diverged, match=f"batch 3: train/{how}_loss is nan; the first output"):
        toy.fit(model, [guard(tmp_path)], batches=5)
    assert "".join(model.stepped[: len(steps)]) == steps
    assert report(tmp_path)["first_output"].startswith("judge" if how == "d" else "painter.0")
    broken = {"d": "judge.bias", "g": "painter.0.bias"}[how]
    assert report(tmp_path)["weights_not_finite"] == [broken]
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        assert int((~weight.isfinite()).sum()) == (name == broken), name


class Again(Callback):
    """A replay in the middle of a run, which shall not notice."""

    found: Found | None = None

    def __init__(self) -> None:
        self.busy = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.busy:
            return
        self.busy = True
        trained = list(pl_module.parameters())
        torch.rand(3)  # elsewhere than where the step has left it
        before = torch.get_rng_state()
        self.found = replay(trainer, pl_module, toy.batch(7), 1, trained)
        assert torch.equal(torch.get_rng_state(), before)
        self.busy = False


@pytest.mark.parametrize("make", [Breaking, Two])
def test_a_replay_changes_nothing(make: type[Breaking], tmp_path: Path) -> None:
    once, twice, again = make(), make(), Again()
    toy.fit(once, batches=4)
    toy.fit(twice, [again], batches=4)
    assert again.found == Found({}, None, None)
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name
    hooks = [part._forward_hooks for part in twice.modules()]
    assert not any(hooks)
    assert "log" not in vars(twice)


def test_with_the_guard_a_run_is_the_same(tmp_path: Path) -> None:
    one, other = Two(), Two()
    toy.fit(one, batches=4)
    toy.fit(other, [guard(tmp_path)], batches=4)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert not (tmp_path / "diverged").exists()


def test_looking_now_and_then_names_the_batch_and_saves_nothing_spoilt(tmp_path: Path) -> None:
    save = SaveLast(path=tmp_path / "l.ckpt", every=2)
    with pytest.raises(Diverged, match=r"diverged in batch 3, seen 5 .*guard.every=1"):
        toy.fit(Two("d"), [guard(tmp_path, every=5)], batches=9)
    assert report(tmp_path)["keys"] == [f"2-{i}" for i in range(toy.BATCH)]
    with pytest.raises(Diverged, match=r"after batch 4 the weights of judge.weight"):
        toy.fit(Two("d"), [guard(tmp_path, every=5), EMA(decay=0.9), save], batches=9)
    state = torch.load(tmp_path / "l.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_a_part_of_a_batch_is_named_itself(tmp_path: Path) -> None:
    """Where gradients of two are added up, and the step comes after the second."""
    with pytest.raises(Diverged, match="diverged in batch 3: train/loss is inf"):
        toy.fit(Breaking("loss"), [guard(tmp_path)], accumulate_grad_batches=2)


def test_the_last_batches_are_looked_at_too(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="diverged in batch 3, seen 100"):
        toy.fit(Breaking("loss"), [guard(tmp_path, every=100)], batches=4)


def test_never_is_not_a_choice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"callbacks.guard.every=0; .*callbacks.guard=null"):
        guard(tmp_path, every=0)


@pytest.mark.parametrize("make", [Breaking, Two])
def test_one_norm_serves_the_guard_and_clipping(
    make: type[Breaking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = {"gradient_clip_val": 0.05} if make is Breaking else {}
    alone, guarded = make(), make()
    toy.fit(alone, batches=4, **clip)
    norms = []

    def counted(tensors: Any, *args: Any, **kwargs: Any) -> Tensor:
        norms.append(measure(tensors, *args, **kwargs))
        return norms[-1]

    measure = nn.utils.get_total_norm
    monkeypatch.setattr(nn.utils, "get_total_norm", counted)
    monkeypatch.delattr(nn.utils, "clip_grad_norm_")  # which measures for itself
    toy.fit(guarded, [guard(tmp_path)], batches=4, **clip)
    assert len(norms) == (4 if make is Breaking else 8)
    assert len({float(norm) for norm in norms}) == len(norms), "each of its own gradients"
    for name, weight in alone.state_dict().items():
        assert torch.equal(guarded.state_dict()[name], weight), name
