"""The alternation that all GANs share, on a toy: whose step, which gradient, whose clock.

N images, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import toy
from salon import checkpoint
from salon.callbacks.ema import EMA
from salon.callbacks.save import SaveLast
from salon.losses.penalties import LazyR1
from salon.models.adversarial import Adversarial, Loss, accuracy
from salon.models.base import chance
from salon.text.base import TextTower
from salon.types import Batch, Text

Z, P, SEED = 5, 3 * toy.SIDE**2, 7


class OneHot(TextTower):
    """Knows a caption by its place in the toy's list."""

    width = pooled_width = len(toy.CAPTIONS)

    def encode(self, captions: Sequence[str]) -> Text:
        places = torch.tensor([toy.CAPTIONS.index(caption) for caption in captions])
        pooled = F.one_hot(places, self.pooled_width).float()
        return Text(pooled[:, None], torch.ones(len(captions), 1, dtype=torch.bool), pooled)


class Play(NamedTuple):
    images: Tensor  # (N, 3, H, W)
    text: Text
    fakes: Tensor  # (N, 3, H, W) with their graph, which the generator's loss uses


class ToyGAN(Adversarial[Play]):
    """Two layers against two layers."""

    def __init__(
        self,
        *,
        lr: float = 0.02,
        r1: LazyR1 | None = None,
        middle: Callable[[], nn.Module] = nn.Tanh,
        schedule: Callable[[int, int], float] = lambda *_: 1.0,
        fail_at: Callable[[ToyGAN], bool] = lambda _: False,
    ) -> None:
        torch.manual_seed(0)
        words = len(toy.CAPTIONS)
        super().__init__(
            text=OneHot(remember=10),
            resolution=toy.SIDE,
            pairs="strict",
            generator=nn.Sequential(nn.Linear(Z + words, 16), nn.Tanh(), nn.Linear(16, P)),
            discriminator=nn.Sequential(nn.Linear(P + words, 16), middle(), nn.Linear(16, 1)),
            optimizer=partial(torch.optim.Adam, lr=lr, betas=(0.5, 0.999)),
            discriminator_optimizer=partial(torch.optim.Adam, lr=2 * lr, betas=(0.5, 0.999)),
            schedule=schedule,
            temperature=1.0,
            r1=r1,
        )
        self.seed, self.fail_at = SEED, fail_at
        self.recipe = {"version": 1, "model": {}, "run": {}}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (Z,)

    def paint(self, z: Tensor, text: Text) -> Tensor:
        told = torch.cat([z * self.temperature, text.pooled], dim=1)
        return self.generator(told).tanh().view(-1, 3, toy.SIDE, toy.SIDE)

    def judge(self, images: Tensor, text: Text) -> Tensor:
        return self.discriminator(torch.cat([images.flatten(1), text.pooled], dim=1)).squeeze(1)

    def prepare(self, batch: Batch) -> Play:
        text = self.text(batch.captions)
        return Play(batch.images, text, self.paint(torch.randn(len(batch.images), Z), text))

    def discriminator_loss(self, play: Play) -> Loss:
        images = self.watched(play.images)
        with self.exactly():
            real = self.judge(images, play.text)
        fake = self.judge(play.fakes.detach(), play.text)
        loss = F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()
        told = {
            "accuracy_real": accuracy(real, real=True),
            "accuracy_fake": accuracy(fake, real=False),
        }
        return self.smoothed(Loss(loss, told), real, images)

    def generator_loss(self, play: Play) -> Loss:
        if self.fail_at(self):
            raise RuntimeError("the toy was told to fail")
        return Loss(F.softplus(-self.judge(play.fakes, play.text).float()).mean(), {})


def fit(
    model: Adversarial[Any],
    callbacks: Sequence[Callback] = (),
    *,
    batches: int = 4,
    validate_every: int | None = None,
    **options: Any,
) -> Trainer:
    """As `salon.run` does it: the options by way of the model."""
    clock = {"batches": batches, "validate_every": validate_every or batches}
    return toy.fit(model, callbacks, **clock, **model.own_options(options))  # type: ignore[arg-type]


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def gradients(module: nn.Module) -> list[Tensor]:
    return [torch.zeros(1) if p.grad is None else p.grad.clone() for p in module.parameters()]


def norm(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part.flatten() for part in parts]).norm())


class Spy(Callback):
    """After each batch: the weights, the gradients, both rates."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.generator: list[list[Tensor]] = []
        self.discriminator: list[list[Tensor]] = []
        self.rates: list[list[float]] = []
        self.losses: list[list[float]] = []
        self.r1: list[float | None] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append(copied(pl_module))
        self.generator.append(gradients(pl_module.generator))
        self.discriminator.append(gradients(pl_module.discriminator))
        told = trainer.callback_metrics
        self.losses.append([float(told[f"train/{who}_loss"]) for who in "dg"])
        self.r1.append(float(told["train/d_r1"]) if "train/d_r1" in told else None)


# -- the clock -------------------------------------------------------------------------------------


def test_one_batch_is_one_tick_though_two_optimisers_step(tmp_path: Path) -> None:
    saved: list[int] = []

    class Save(SaveLast):
        def save(self, trainer: Trainer) -> None:
            saved.append(trainer.lightning_module.batches_seen)  # type: ignore[arg-type]
            super().save(trainer)

    validated: list[int] = []

    class Validated(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            validated.append(pl_module.batches_seen)

    model, spy = ToyGAN(), Spy()
    save = Save(path=tmp_path / "last.ckpt", every=3)
    trainer = fit(model, [spy, save, Validated()], batches=7, validate_every=3)
    assert model.batches_seen == model.budget == len(spy.weights) == 7
    assert model.images_seen == 7 * toy.BATCH
    assert trainer.global_step == 14, "Lightning counts each optimiser's steps"
    assert saved == [3, 6, 7]
    assert validated == [3, 6]


def test_both_rates_follow_the_schedule_in_batches() -> None:
    model, spy = ToyGAN(lr=0.01, schedule=lambda seen, budget: 1 - seen / (2 * budget)), Spy()
    fit(model, [spy], batches=5)
    for seen, (discriminator, generator) in enumerate(spy.rates):
        assert discriminator == pytest.approx(0.02 * (1 - seen / 10))
        assert generator == pytest.approx(0.01 * (1 - seen / 10))
    assert len(spy.rates) == 5


def test_the_average_is_of_the_generator_once_a_batch() -> None:
    model, spy, ema = ToyGAN(), Spy(), EMA(decay=0.3)
    expected = copied(model.generator)
    fit(model, [ema, spy], batches=6)
    assert ema.updates == 6
    assert set(ema.average) == set(expected)
    for decay, weights in zip([0.1, 2 / 11, 3 / 12, 0.3, 0.3, 0.3], spy.weights, strict=True):
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * weights[f"generator.{name}"]
    for name, value in ema.average.items():
        torch.testing.assert_close(value, expected[name])


# -- whose gradient --------------------------------------------------------------------------------


def test_each_step_leaves_the_other_network_alone() -> None:
    """Looked at between the two steps and after both."""
    between: list[tuple[list[Tensor], list[Tensor], dict[str, Tensor]]] = []

    class Watched(ToyGAN):
        def generator_loss(self, play: Play) -> Loss:
            seen = gradients(self.generator), gradients(self.discriminator), copied(self)
            between.append(seen)
            assert not any(p.requires_grad for p in self.discriminator.parameters())
            return super().generator_loss(play)

    model, spy = Watched(), Spy()
    before = [copied(model)]
    fit(model, [spy], batches=3)
    before += spy.weights
    assert len(between) == 3
    for i, (generator, discriminator, weights) in enumerate(between):
        if i == 0:
            assert norm(generator) == 0
        else:  # what the last generator's step left there
            assert all(map(torch.equal, generator, spy.generator[i - 1]))
        assert all(map(torch.equal, discriminator, spy.discriminator[i]))
        assert norm(discriminator) > 0
        for name, value in weights.items():
            if name.startswith("generator"):
                assert torch.equal(value, before[i][name]), "moved by the discriminator's step"
            elif name.startswith("discriminator"):
                assert not torch.equal(value, before[i][name])
                assert torch.equal(value, spy.weights[i][name]), "moved by the generator's step"
    assert all(norm(grads) > 0 for grads in spy.generator)
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_the_discriminator_can_train_after_an_exception() -> None:
    model = ToyGAN(fail_at=lambda model: model.batches_seen == 1)
    with pytest.raises(RuntimeError, match="told to fail"):
        fit(model)
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_what_is_frozen_in_a_discriminator_stays_frozen() -> None:
    """Some judge with the features of a pretrained network, which no step may change."""

    class Pretrained(ToyGAN):
        def __init__(self) -> None:
            super().__init__()
            assert isinstance(self.discriminator, nn.Sequential)
            self.keep_frozen(self.discriminator[0])

    model = Pretrained()
    before = copied(model.discriminator)
    fit(model, batches=3)
    after = copied(model.discriminator)
    assert not torch.equal(after["2.weight"], before["2.weight"])
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert [p.requires_grad for p in model.discriminator.parameters()] == [False] * 2 + [True] * 2


@pytest.mark.parametrize("every", [None, 1, 2])
def test_three_batches_equal_the_loop_written_out(every: int | None) -> None:
    """Goodfellow et al. 2014, Algorithm 1: D's step, then G's against the discriminator as it is
    then; with R1 in every batch, in every other one, or without it."""
    r1 = None if every is None else LazyR1(gamma=3.0, every=every)
    model, spy, hand = ToyGAN(r1=r1), Spy(), ToyGAN()
    fit(model, [spy], batches=3)

    g, d = hand.generator, hand.discriminator
    d_steps = torch.optim.Adam(d.parameters(), lr=0.04, betas=(0.5, 0.999))
    g_steps = torch.optim.Adam(g.parameters(), lr=0.02, betas=(0.5, 0.999))
    bce = F.binary_cross_entropy_with_logits
    stale = []
    for i in range(3):
        batch = toy.batch(i)
        torch.manual_seed(chance(SEED, i, 0))
        z = torch.randn(toy.BATCH, Z)
        words = torch.eye(len(toy.CAPTIONS))

        def logits(images: Tensor, words: Tensor = words) -> Tensor:
            return d(torch.cat([images.flatten(1), words], dim=1))

        def fakes(z: Tensor = z, words: Tensor = words) -> Tensor:
            return g(torch.cat([z, words], dim=1)).tanh()

        x = batch.images.requires_grad_()
        real, fake = logits(x), logits(fakes().detach())
        d_loss = bce(real, torch.ones(4, 1)) + bce(fake, torch.zeros(4, 1))
        if every is not None and i % every == 0:
            (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
            penalty = 1.5 * slope.square().sum((1, 2, 3)).mean()
            assert penalty > 0.1
            d_loss = d_loss + every * penalty
            assert spy.r1[i] == pytest.approx(penalty.item(), abs=1e-6)
        stale.append(bce(fake, torch.ones(4, 1)).item())
        d_steps.zero_grad()
        d_loss.backward()
        d_steps.step()
        g_loss = bce(logits(fakes()), torch.ones(4, 1))
        g_steps.zero_grad()
        g_loss.backward()
        g_steps.step()
        assert spy.losses[i] == pytest.approx([d_loss.item(), g_loss.item()], abs=1e-6)
        for name, value in hand.state_dict().items():
            torch.testing.assert_close(spy.weights[i][name], value, rtol=0, atol=1e-6)
        assert abs(spy.losses[i][1] - stale[i]) > 0.05, "the discriminator before its step"


# -- R1 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", [partial(nn.BatchNorm1d, 16), partial(nn.SyncBatchNorm, 16)])
def test_r1_of_a_batch_normalised_discriminator_is_refused(
    middle: Callable[[], nn.Module],
) -> None:
    says = r"model\.r1 .*batch normalisation.*model\.discriminator\.norm=none, or model\.r1=null"
    with pytest.raises(ValueError, match=says):
        ToyGAN(r1=LazyR1(gamma=1.0, every=1), middle=middle)
    assert ToyGAN(middle=middle).r1 is None
    assert ToyGAN(r1=LazyR1(gamma=1.0, every=1), middle=partial(nn.LayerNorm, 16)).r1 is not None


def test_r1_is_in_float32_and_only_r1() -> None:
    """Of a batch: D's look at real images, D's at fakes, and G's."""
    seen: list[torch.dtype] = []

    class Seen(ToyGAN):
        def judge(self, images: Tensor, text: Text) -> Tensor:
            logits = super().judge(images, text)
            if self.trainer.training:
                seen.append(logits.dtype)
            return logits

    r1, exact, rounded = LazyR1(gamma=3.0, every=2), Spy(), Spy()
    fit(ToyGAN(r1=r1), [exact], batches=3)
    fit(Seen(r1=r1), [rounded], batches=3, precision="bf16-mixed")
    due, fast = [torch.float32, *[torch.bfloat16] * 2], [torch.bfloat16] * 3
    assert seen == due + fast + due
    assert rounded.r1[0] == pytest.approx(exact.r1[0], rel=1e-6)
    for one, other in zip(exact.losses, rounded.losses, strict=True):
        assert one == pytest.approx(other, abs=0.05)


# -- interruption ----------------------------------------------------------------------------------


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    """Killed in the fifth batch between the two steps, and gone on from after the third."""
    path, decaying = tmp_path / "last.ckpt", lambda seen, budget: 1 - seen / (2 * budget)
    make = partial(ToyGAN, schedule=decaying, r1=LazyR1(gamma=1.0, every=2))
    whole = make()
    straight = fit(whole, batches=6)

    killed = make(fail_at=lambda model: model.batches_seen == 4)
    with pytest.raises(RuntimeError, match="told to fail"):
        fit(killed, [SaveLast(path=path, every=3)], batches=6)
    loops = checkpoint.read(path)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["total"]["processed"] == 3

    model, spy = make(), Spy()
    again = fit(model, [spy], batches=6, resume=path)
    assert len(spy.weights) == 3
    assert_same(model.state_dict(), whole.state_dict())
    for one, other in zip(again.optimizers, straight.optimizers, strict=True):
        first, second = one.state_dict(), other.state_dict()
        assert first["param_groups"] == second["param_groups"]
        assert first["state"].keys() == second["state"].keys()
        for i in first["state"]:
            assert first["state"][i]["step"] == 6
            assert_same(first["state"][i], second["state"][i])


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


# -- the trainer's options -------------------------------------------------------------------------


def test_each_network_is_clipped_by_itself() -> None:
    """Lightning leaves clipping to manual optimisation, and refuses the option."""
    with pytest.raises(MisconfigurationException, match="clipping"):
        toy.fit(ToyGAN(), gradient_clip_val=1.0)  # type: ignore[arg-type]

    free, clipped = Spy(), Spy()
    fit(ToyGAN(), [free], batches=1)
    rows = toy.Rows()
    fit(ToyGAN(), [clipped], batches=1, gradient_clip_val=0.01, loggers=[rows], log_every_n_steps=1)
    (row,) = rows.having("train/d_grad_norm")
    for who, name in (("discriminator", "d"), ("generator", "g")):
        before, after = (norm(getattr(spy, who)[0]) for spy in (free, clipped))
        assert before > 0.02
        assert after == pytest.approx(0.01, rel=1e-3)
        if who == "discriminator":  # the generator's is against another discriminator then
            assert row[f"train/{name}_grad_norm"] == pytest.approx(before, rel=1e-5)
        assert row[f"train/{name}_grad_norm"] > 0.02


def test_gradients_below_the_limit_are_left_as_they_are() -> None:
    free, clipped = ToyGAN(), ToyGAN()
    fit(free, batches=2)
    fit(clipped, batches=2, gradient_clip_val=1e6)
    assert_same(free.state_dict(), clipped.state_dict())


def test_a_limit_of_zero_is_none() -> None:
    """As for every other family: Lightning takes 0 for off."""
    free, clipped = ToyGAN(), ToyGAN()
    fit(free, batches=2)
    fit(clipped, batches=2, gradient_clip_val=0)
    assert_same(free.state_dict(), clipped.state_dict())


def test_options_that_are_not_its_own_go_through() -> None:
    given = {"gradient_clip_val": 1.0, "precision": "bf16-mixed", "log_every_n_steps": 5}
    model = ToyGAN()
    assert model.own_options(given) == {**given, "gradient_clip_val": None}
    assert model.gradient_clip == 1.0
    assert given["gradient_clip_val"] == 1.0, "the caller's own"
    assert model.own_options({}) == {"gradient_clip_val": None}
    assert model.gradient_clip is None


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16", 16])
def test_half_precision_is_refused(precision: str | int) -> None:
    says = rf"trainer\.precision={precision}: .*overflow in float16.*bf16-mixed or 32-true"
    with pytest.raises(ValueError, match=says):
        ToyGAN().own_options({"precision": precision})


def test_accumulation_is_refused() -> None:
    says = r"trainer\.accumulate_grad_batches=2: .*larger batch_size"
    with pytest.raises(ValueError, match=says):
        ToyGAN().own_options({"accumulate_grad_batches": 2})
    assert ToyGAN().own_options({"accumulate_grad_batches": 1})["accumulate_grad_batches"] == 1


def test_clipping_by_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_algorithm"):
        ToyGAN().own_options({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"})


def test_bfloat16_trains_alike() -> None:
    """With steps so large that weights cast before them would show."""
    exact, rounded = Spy(), Spy()
    fit(ToyGAN(), [exact], batches=3)
    seen: list[torch.dtype] = []

    class Seen(ToyGAN):
        def judge(self, images: Tensor, text: Text) -> Tensor:
            logits = super().judge(images, text)
            seen.append(logits.dtype)
            return logits

    model = Seen()
    fit(model, [rounded], batches=3, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    for one, other in zip(exact.losses, rounded.losses, strict=True):
        assert one == pytest.approx(other, abs=0.02)


# -- what is told ----------------------------------------------------------------------------------


def test_what_is_logged() -> None:
    rows = toy.Rows()
    fit(ToyGAN(), batches=4, validate_every=4, loggers=[rows], log_every_n_steps=1)
    trained = rows.having("train/d_loss")
    assert len(trained) == 4
    expected = {
        "train/d_loss", "train/g_loss", "train/d_grad_norm", "train/g_grad_norm",
        "train/d_accuracy_real", "train/d_accuracy_fake",
    }  # fmt: skip
    assert all(expected <= set(row) for row in trained)
    assert all(row["train/d_grad_norm"] > 0 for row in trained)
    assert len(rows.having("val/d_matching")) == 1


def test_the_norms_that_are_logged_are_of_that_batch() -> None:
    rows, spy = toy.Rows(), Spy()
    fit(ToyGAN(), [spy], batches=6, loggers=[rows], log_every_n_steps=3)
    logged = rows.having("train/g_loss")
    assert len(logged) == 2
    for row, batch in zip(logged, (2, 5), strict=True):
        assert row["train/g_loss"] == pytest.approx(spy.losses[batch][1])
        assert row["train/d_grad_norm"] == pytest.approx(norm(spy.discriminator[batch]), rel=1e-4)
        assert row["train/g_grad_norm"] == pytest.approx(norm(spy.generator[batch]), rel=1e-4)


def test_a_run_that_logs_nothing() -> None:
    """Lightning takes `log_every_n_steps=0` for never."""
    model = ToyGAN()
    fit(model, batches=2, log_every_n_steps=0)
    assert model.batches_seen == 2


def test_matching_counts_captions_that_beat_the_next_ones() -> None:
    """In [-1, 1] as D's logit: the brightness where the caption is the first or second of four."""

    class Reader(ToyGAN):
        def judge(self, images: Tensor, text: Text) -> Tensor:
            return images.mean((1, 2, 3)) * text.pooled[:, :2].sum(1)

    class Data(toy.ToyData):
        def val_dataloader(self) -> Any:
            images = torch.tensor([0.5, 0.5, 0.5, -0.5, 0.5]).view(-1, 1, 1, 1)
            captions = [toy.CAPTIONS[i] for i in (0, 2, 3, 1, 0)]
            batch = Batch(images.expand(-1, 3, toy.SIDE, toy.SIDE), captions, list("abcde"))
            return torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

    # Own and next caption count 1 0 0 1 1 and 0 0 1 1 1; the last pair is of equal captions, and
    # is left out: right (0.5 > 0), a tie, wrong (0 < 0.5), a tie.
    trainer = toy.trainer([], batches=1, validate_every=1)
    (told,) = trainer.validate(Reader(), datamodule=Data(), verbose=False)
    assert told["val/d_matching"] == 0.25


def test_where_all_captions_are_equal_nothing_is_said_of_matching() -> None:
    class Data(toy.ToyData):
        def val_dataloader(self) -> Any:
            batch = toy.batch(0)._replace(captions=[toy.CAPTIONS[0]] * toy.BATCH)
            return torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

    trainer = toy.trainer([], batches=1, validate_every=1)
    (told,) = trainer.validate(ToyGAN(), datamodule=Data(), verbose=False)
    assert told == {}


def test_accuracy() -> None:
    assert accuracy(torch.tensor([1.0, -1.0, 3.0, 2.0]), real=True) == 0.75
    assert accuracy(torch.tensor([1.0, -1.0, 3.0, 2.0]), real=False) == 0.25
    many, one = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([-1.0])
    assert accuracy(many, one, real=True) == 0.5, "each tensor counts alike"


def test_weights_in_bfloat16_are_refused() -> None:
    with pytest.raises(ValueError, match=r"precision=bf16-true: .*bf16-mixed"):
        ToyGAN().own_options({"precision": "bf16-true"})
