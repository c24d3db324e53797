"""DF-GAN: its networks, its objectives by closed forms, its steps by a loop written out.

N images, E text features, Z noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

import toy
from salon.config import build
from salon.models.base import chance
from salon.models.df_gan import (
    DFGAN,
    DFBlock,
    Discriminator,
    DownBlock,
    Generator,
    HingeMAGP,
    Judged,
    Objective,
    Play,
    Relativistic,
    UpBlock,
    level_count,
    truncated,
)
from salon.nn.augment import DiffAugment
from salon.text.base import TextTower
from salon.types import Batch, Text

E, Z, SEED = 4, 3, 5
STEEP, GAMMA = 6.0, 5.0
LR_G, LR_D = 0.003, 0.01
# With an epsilon at which a gradient of next to nothing does not become a step of its rounding.
ADAM = partial(torch.optim.Adam, betas=(0.0, 0.9), eps=1e-4)
REAL, WRONG, FAKE = torch.tensor([2.0, -1]), torch.tensor([0.5, 1.5]), torch.tensor([-0.3, 0.7])


class OneHot(TextTower):
    """Knows a caption by its place in the toy's list."""

    width = pooled_width = E

    def encode(self, captions: Sequence[str]) -> Text:
        pooled = F.one_hot(torch.tensor([toy.CAPTIONS.index(c) for c in captions]), E).float()
        return Text(pooled[:, None], torch.ones(len(captions), 1, dtype=torch.bool), pooled)


HINGE = HingeMAGP(weight=2.0, power=6.0)
JUDGE = {"head": 8, "gate": 0.0, "init": "pytorch"}
R3 = Relativistic(gamma=GAMMA, wrong_weight=0.25)
OFF = DiffAugment(color=False, translation=0.0, cutout=0.0)


class Still(DFGAN):
    """With a clock that is set by hand where there is no trainer."""

    tick: int | None = 0

    @property
    def batches_seen(self) -> int:
        return super().batches_seen if self.tick is None else self.tick


def small(**changes: Any) -> Still:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "text": OneHot(remember=10), "resolution": toy.SIDE,
        "generator": partial(Generator, latent=Z, channels=6, widest=12),
        "discriminator": partial(Discriminator, **JUDGE, channels=6, widest=12),
        "objective": HINGE, "penalty_every": 1, "pairs": "roll", "augment": OFF,
        "truncation": None, "temperature": 1.0, "schedule": lambda *_: 1.0,
        "optimizer": partial(ADAM, lr=LR_G), "discriminator_optimizer": partial(ADAM, lr=LR_D),
    }  # fmt: skip
    model = Still(**{**options, **changes})
    model.seed = SEED
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        # What starts at zero or one would hide what it multiplies.
        if "gamma" in name or "beta" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    # So steep that a penalty of its slope to the sixth counts.
    model.discriminator.head[-1].weight.data *= STEEP
    return model


pytestmark = pytest.mark.usefixtures("one_thread")


def played(model: DFGAN, number: int = 0) -> Play:
    torch.manual_seed(number)
    return model.prepare(toy.batch(number))


# -- networks --------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_sizes_and_rates(hydra_conf: None) -> None:
    cfg = compose("train", ["model=df_gan/paper", "data.resolution=256"])

    class Wide(OneHot):
        width = pooled_width = 256

    with torch.device("meta"):
        model = build(cfg.model, "model", text=Wide(remember=1))
        assert model.generator(torch.zeros(2, 100), torch.zeros(2, 256)).shape == (2, 3, 256, 256)
        h = model.discriminator.features(torch.zeros(2, 3, 256, 256))
        assert h.shape == (2, 256, 4, 4)
        assert model.discriminator.match(h, torch.zeros(2, 256)).shape == (2,)
    assert count(model.generator) == 9_744_131
    assert count(model.discriminator.features) == 6_619_206
    assert count(model.discriminator.head) == 295_936
    assert not [m for m in model.modules() if "Norm" in type(m).__name__]
    for optimizer, lr in ((model.make_optimizer, 1e-4), (model.make_discriminator_optimizer, 4e-4)):
        group = optimizer([torch.zeros(1, requires_grad=True)]).param_groups[0]
        assert (group["lr"], tuple(group["betas"])) == (lr, (0.0, 0.9))
        assert model.schedule(0, 10) == model.schedule(9, 10) == 1.0
    assert (model.objective.weight, model.objective.power, model.penalty_every) == (2, 6, 1)
    assert cfg.trainer.gradient_clip_val is None
    assert cfg.callbacks.ema is None


def test_noise_and_text_come_in_at_every_affine_map_which_start_as_the_identity() -> None:
    torch.manual_seed(0)
    generator = Generator(text_width=E, resolution=16, latent=Z, channels=4, widest=8)
    z, e = torch.randn(1, Z), torch.eye(2, E)
    one, other = generator(z, e[:1]), generator(z, e[1:])
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    h = torch.randn(1, 8, 4, 4)
    affine = generator.blocks[0].fuse1.first
    torch.testing.assert_close(affine(h, torch.cat([z, e[:1]], dim=1)), h, rtol=0, atol=0)
    for block in generator.blocks:  # each by itself: the text comes in everywhere
        for fusion in (block.fuse1, block.fuse2):
            for affine in (fusion.first, fusion.second):
                for part in (affine.gamma, affine.beta):
                    nn.init.normal_(part[-1].weight)
                    assert (generator(z, e[:1]) - generator(z, e[1:])).abs().max() > 1e-4
                    nn.init.zeros_(part[-1].weight)
    nn.init.zeros_(generator.start.weight)
    torch.testing.assert_close(generator(z, e[:1]), generator(-z, e[:1]))
    nn.init.normal_(generator.blocks[0].fuse1.first.beta[-1].weight)
    assert (generator(z, e[:1]) - generator(-z, e[:1])).abs().max() > 1e-4, "z comes in there, too"


def test_an_up_block_in_the_papers_order() -> None:
    """Pixels are repeated first there."""
    torch.manual_seed(0)
    block, h, c = UpBlock(5, 4, condition=6), torch.randn(2, 5, 4, 4), torch.randn(2, 6)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)

    def fused(fusion: DFBlock, x: Tensor) -> Tensor:
        for affine in (fusion.first, fusion.second):
            gamma = affine.gamma[2](affine.gamma[0](c).clamp(min=0))
            beta = affine.beta[2](affine.beta[0](c).clamp(min=0))
            x = gamma[..., None, None] * x + beta[..., None, None]
            x = torch.where(x > 0, x, 0.2 * x)
        return x

    x = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = block.skip(x) + block.conv2(fused(block.fuse2, block.conv1(fused(block.fuse1, x))))
    torch.testing.assert_close(block(h, c), expected)


def test_a_down_block_in_the_papers_order() -> None:
    torch.manual_seed(0)
    block, h = DownBlock(3, 5, gate=0.0), torch.randn(2, 3, 8, 8)
    shortcut = F.avg_pool2d(block.skip(h), 2)
    torch.testing.assert_close(block(h), shortcut, msg="gamma starts at zero")
    block.gamma.data.fill_(0.7)
    first, _, second, _ = block.residual
    residual = F.leaky_relu(second(F.leaky_relu(first(h), 0.2)), 0.2)
    torch.testing.assert_close(block(h), shortcut + 0.7 * residual)


@pytest.mark.parametrize("init", ["he", "pytorch"])
def test_the_discriminator_sees_every_pixel(init: str) -> None:
    torch.manual_seed(0)
    judge = Discriminator(
        **{**JUDGE, "init": init}, text_width=E, resolution=32, channels=4, widest=8
    )
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    logits = judge(images, torch.randn(2, E))
    assert logits.shape == (2,)
    (gradient,) = torch.autograd.grad(logits[0], images)
    assert gradient[0].ne(0).all()
    assert gradient[1].eq(0).all(), "no image looks at another"


def test_hes_law_keeps_the_size_of_a_signal_and_pytorchs_loses_it() -> None:
    """What a residual branch says, next to what it is told, in the coarsest block of four."""
    share = {}
    for init in ("he", "pytorch"):
        torch.manual_seed(0)
        judge = Discriminator(
            text_width=E, resolution=64, channels=32, widest=256, head=8, gate=1.0, init=init
        )
        h = torch.randn(4, 256, 8, 8)
        share[init] = float(judge.features[-1].residual(h).std() / h.std())
    assert 0.5 < share["he"] < 1.5
    assert share["pytorch"] < 0.3


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_every_residual_branch_starts_behind_the_gate_that_is_asked_for(gate: float) -> None:
    judge = Discriminator(
        text_width=E, resolution=32, channels=4, widest=8, head=8, gate=gate, init="he"
    )
    assert [float(b.gamma) for b in judge.features if isinstance(b, DownBlock)] == [gate] * 3


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.discriminator\.init='xavier'.*'he' or 'pytorch'"):
        Discriminator(
            text_width=E, resolution=32, channels=4, widest=8, head=8, gate=0.0, init="xavier"
        )


@pytest.mark.parametrize("resolution", [48, 4, 33])
def test_a_resolution_that_does_not_halve_to_4_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.resolution={resolution}.*a.* power of two"):
        level_count(resolution)


# -- objectives ------------------------------------------------------------------------------------


def logits_only(real: Tensor, wrong: Tensor, fake: Tensor) -> Judged:
    nothing = torch.zeros(0)
    return Judged(real, wrong, fake, nothing, nothing, nothing)


def no_real() -> Tensor:
    raise AssertionError("the hinge compares with no real image")


def test_hinge() -> None:
    assert HINGE.discriminator(logits_only(REAL, WRONG, FAKE)).item() == pytest.approx(2.6)
    zeros = torch.zeros(2)
    assert HINGE.discriminator(logits_only(zeros, zeros, zeros)).item() == 2.0
    assert HINGE.generator(FAKE, no_real).item() == pytest.approx(-0.2)


def test_relativistic() -> None:
    """softplus(-2.3), softplus(1.7) against the fakes; of -1.5, 2.5 against the wrong ones."""
    fake, wrong = (0.095545 + 1.867786) / 2, (0.201413 + 2.578890) / 2
    told = R3.discriminator(logits_only(REAL, WRONG, FAKE)).item()
    assert told == pytest.approx(0.75 * fake + 0.25 * wrong, abs=1e-5)
    # softplus(2.3), softplus(-1.7)
    asked = R3.generator(FAKE, lambda: REAL).item()
    assert asked == pytest.approx((2.395545 + 0.167786) / 2, abs=1e-5)


class Linear(nn.Module):
    """D(x, e) = a x + b e."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.a

    def match(self, h: Tensor, e: Tensor) -> Tensor:
        return h + e @ self.b

    def forward(self, images: Tensor, e: Tensor) -> Tensor:
        return self.match(self.features(images), e)


def linear(objective: Objective, scale: float) -> tuple[DFGAN, Linear]:
    model = small(objective=objective)
    torch.manual_seed(3)
    judge = Linear(scale * torch.randn(3 * toy.SIDE**2), scale * torch.randn(E))
    model.discriminator = judge  # type: ignore[assignment]
    return model, judge


def test_the_matching_aware_penalty_of_a_linear_discriminator() -> None:
    """2 (|a|^2 + |b|^2)^3, the norm being that over image and text together."""
    model, judge = linear(HINGE, 0.1)
    told = model.discriminator_loss(played(model)).told
    expected = 2 * (judge.a.square().sum() + judge.b.square().sum()) ** 3
    torch.testing.assert_close(told["penalty"], expected)
    assert expected > 1


def test_the_matching_aware_penalty_where_the_discriminator_is_flat() -> None:
    model, judge = linear(HINGE, 0.0)
    loss = model.discriminator_loss(played(model))
    loss.total.backward()
    assert loss.told["penalty"] == 0
    assert loss.total.item() == 2.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())


def test_r1_and_r2_of_a_linear_discriminator() -> None:
    model, judge = linear(R3, 0.1)
    told = model.discriminator_loss(played(model)).told
    torch.testing.assert_close(told["penalty"], 0.5 * GAMMA * 2 * judge.a.square().sum())


@pytest.mark.parametrize(("objective", "moves"), [(HINGE, False), (R3, True)])
def test_whether_fakes_move_the_penalty(objective: Objective, moves: bool) -> None:
    """The matching-aware one is of real images alone; R2 is of fakes."""
    model = small(objective=objective)
    play = played(model)
    first = model.discriminator_loss(play).told["penalty"]
    second = model.discriminator_loss(play._replace(fakes=play.fakes.flip(0))).told["penalty"]
    assert first > 0
    assert (first != second) == moves
    other = model.discriminator_loss(play._replace(images=play.images + 0.5)).told["penalty"]
    assert first != other


def test_wrong_pairs_are_the_real_images_under_the_next_texts() -> None:
    """And only the head looks at them again: features are those of the real ones."""
    model, looks = small(), []
    model.discriminator.features.register_forward_hook(lambda *_: looks.append(1))
    play = played(model)
    judged = model.look(play, smooth=True)
    assert len(looks) == 2
    expected = model.discriminator(play.images, play.texts.roll(-1, 0))
    torch.testing.assert_close(judged.wrong, expected)
    torch.testing.assert_close(judged.real, model.discriminator(play.images, play.texts))
    torch.testing.assert_close(judged.fake, model.discriminator(play.fakes, play.texts))
    assert (judged.wrong - judged.real).abs().min() > 1e-4


@pytest.mark.parametrize("objective", [HINGE, R3])
def test_the_lazy_penalty_is_as_strong_on_average(objective: Objective) -> None:
    every = small(objective=objective)
    play = played(every)
    strict = every.discriminator_loss(play)
    plain = objective.discriminator(every.look(play, smooth=False))
    torch.testing.assert_close(strict.total, plain + strict.told["penalty"])

    lazy, totals = small(objective=objective, penalty_every=4), []
    for lazy.tick in range(8):
        loss = lazy.discriminator_loss(play)
        assert ("penalty" in loss.told) == (lazy.tick in (0, 4))
        totals.append(loss.total)
    torch.testing.assert_close(torch.stack(totals).mean(), strict.total)
    torch.testing.assert_close(totals[1], plain)


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "fakes"), [(HINGE, torch.bfloat16), (R3, torch.float32)])
def test_the_penalty_is_in_float32_under_autocast(objective: Objective, fakes: torch.dtype) -> None:
    model = small(objective=objective, penalty_every=2)
    play, seen = played(model), []
    exact = model.discriminator_loss(play)
    model.discriminator.features.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.discriminator_loss(play)
        assert seen == [torch.float32, fakes]
        model.tick, _ = 1, seen.clear()
        model.discriminator_loss(play)
        assert seen == [torch.bfloat16] * 2, "where no penalty is due, all is fast"
        assert played(model).fakes.dtype == torch.float32
    torch.testing.assert_close(rounded.told["penalty"], exact.told["penalty"], rtol=1e-6, atol=0)
    torch.testing.assert_close(rounded.total, exact.total, rtol=0, atol=0.01)
    rounded.total.backward()


# -- whose gradient, and in which order ------------------------------------------------------------


@pytest.mark.parametrize("objective", [HINGE, R3])
def test_no_loss_reaches_the_other_network(objective: Objective) -> None:
    model = small(objective=objective)
    play = played(model)
    model.discriminator_loss(play).total.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.zero_grad()
    model.discriminator.requires_grad_(False)
    model.generator_loss(play).total.backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())
    assert play.texts.grad is None
    assert play.images.grad is None


class Spy(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        state = pl_module.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})


Terms = Callable[[Tensor, Tensor, Tensor], Tensor]


def hinge_by_hand(real: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    fakes = 0.5 * (1 + fake).clamp(min=0).mean() + 0.5 * (1 + wrong).clamp(min=0).mean()
    return (1 - real).clamp(min=0).mean() + fakes


def r3_by_hand(real: Tensor, wrong: Tensor, fake: Tensor) -> Tensor:
    fakes = -0.75 * F.logsigmoid(real - fake) - 0.25 * F.logsigmoid(real - wrong)
    return fakes.mean()


def by_hand(hinge: bool, every: int) -> list[dict[str, Tensor]]:
    """Three batches of the algorithm, written out."""
    model, states = small(), []
    g, d = model.generator, model.discriminator
    d_steps, g_steps = ADAM(d.parameters(), lr=LR_D), ADAM(g.parameters(), lr=LR_G)
    for i in range(3):
        x = toy.batch(i).images.requires_grad_()
        e = (2 * torch.eye(E)).requires_grad_()  # the toy's captions, of length sqrt(E)
        torch.manual_seed(chance(SEED, i, 0))
        fakes = g(torch.randn(toy.BATCH, Z), e.detach())
        y = fakes.detach().requires_grad_()
        real, wrong, fake = d(x, e), d(x, e.roll(-1, 0)), d(y, e)
        loss = (hinge_by_hand if hinge else r3_by_hand)(real, wrong, fake)
        if i % every == 0:
            slopes = torch.autograd.grad(real.sum(), [x, e], create_graph=True)
            image, text = (s.flatten(1).pow(2).sum(1) for s in slopes)
            if hinge:
                loss = loss + every * 2 * ((image + text) ** 3).mean()
            else:
                (slope,) = torch.autograd.grad(fake.sum(), y, create_graph=True)
                both = image + slope.flatten(1).pow(2).sum(1)
                loss = loss + every * GAMMA / 2 * both.mean()
        d_steps.zero_grad()
        loss.backward()
        d_steps.step()
        fake, real = d(fakes, e.detach()), d(x, e).detach()
        loss = -fake.mean() if hinge else -F.logsigmoid(fake - real).mean()
        g_steps.zero_grad()
        loss.backward()
        g_steps.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return states


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("objective", [HINGE, R3])
def test_three_batches_equal_the_loop_written_out(objective: Objective, every: int) -> None:
    """The generator's loss is against the discriminator after its step."""
    model, spy = small(objective=objective, penalty_every=every), Spy()
    model.tick = None
    trainer = toy.trainer([spy], batches=3, validate_every=3)
    trainer.fit(model, datamodule=toy.ToyData())
    expected = by_hand(objective is HINGE, every)
    for seen, state in zip(spy.weights, expected, strict=True):
        assert seen.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(seen[name], value, rtol=0, atol=1e-6)


# -- what is around it -----------------------------------------------------------------------------


def test_all_that_the_discriminator_sees_in_training_is_augmented() -> None:
    class Halved(DiffAugment):
        def forward(self, images: Tensor) -> Tensor:
            return 0.5 * images

    augment = Halved(color=False, translation=0.0, cutout=0.0)
    model, plain = small(augment=augment, objective=R3), small(objective=R3)
    play = played(model)
    half = play._replace(images=0.5 * play.images, fakes=0.5 * play.fakes)
    for one, other in zip(
        model.look(play, smooth=False)[:3], plain.look(half, smooth=False)[:3], strict=True
    ):
        torch.testing.assert_close(one, other)
    loss, expected = model.generator_loss(play), plain.generator_loss(half)
    torch.testing.assert_close(loss.total, expected.total)
    batch = toy.batch(0)
    text = model.text(batch.captions)
    judged = model.judge(batch.images, text)
    torch.testing.assert_close(judged, plain.discriminator(batch.images, 2 * torch.eye(E)))


def test_the_objectives_train_with_augmentation() -> None:
    """The penalties differentiate through it."""
    for objective in (HINGE, R3):
        augment = DiffAugment(color=True, translation=0.125, cutout=0.5)
        model = small(augment=augment, objective=objective)
        play = played(model)
        model.discriminator_loss(play).total.backward()
        model.generator_loss(play).total.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None and g.isfinite().all() for g in gradients)


def test_what_is_told() -> None:
    model = small()
    batch = toy.batch(0)
    captions = [batch.captions[0], batch.captions[0], *batch.captions[2:]]
    told = model.discriminator_loss(model.prepare(batch._replace(captions=captions))).told
    assert {"accuracy_real", "accuracy_fake", "accuracy_wrong", "penalty"} <= told.keys()
    assert told["same_pairs"] == 0.25
    assert all(value.shape == () for value in told.values())


def test_noise_is_cut_off_quantile_by_quantile() -> None:
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    cut = truncated(z, 2.0)
    assert cut.dtype == z.dtype
    assert cut.abs().max() < 2
    assert cut.std().item() == pytest.approx(0.8796, abs=0.005)  # of the normal on [-2, 2]
    assert (cut.sort().indices == z.sort().indices).float().mean() > 0.999
    torch.testing.assert_close(truncated(z, 12.0), z, rtol=0, atol=1e-5)


def test_noise_is_cut_off_before_it_is_shrunk() -> None:
    model = small().eval()
    z, text = 3 * torch.randn(4, Z), model.text(toy.CAPTIONS)
    expected = model.generator(0.5 * truncated(z, 2.0), 2 * torch.eye(E))
    model.set_sampling(temperature=0.5, truncation=2.0)
    torch.testing.assert_close(model.paint(z, text), expected)
    assert model.settings == {"temperature": 0.5, "truncation": 2.0}
    model.set_sampling(temperature=0.5, truncation=None)
    torch.testing.assert_close(model.paint(z, text), model.generator(0.5 * z, 2 * torch.eye(E)))
    one = model.paint(z[:1], model.text(toy.CAPTIONS[:1]))
    torch.testing.assert_close(one, model.paint(z, text)[:1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"penalty_every": 0}, r"model\.penalty_every=0"),
        ({"pairs": "rol"}, r"model\.pairs='rol'; expected one of roll, strict"),
        ({"truncation": -1.0}, r"truncation=-1\.0; expected"),
    ],
)
def test_mistakes_are_explained(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small(**changes)


def test_a_share_of_wrong_pairs_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wrong_weight=1\.5"):
        Relativistic(gamma=1.0, wrong_weight=1.5)


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [HINGE, R3])
def test_it_learns_which_text_goes_with_which_image(objective: Objective) -> None:
    """Two classes, dark and bright, told by their captions: D tells a text from the other, and G
    paints by it."""
    model = small(objective=objective, pairs="strict")
    discriminator = model.make_discriminator_optimizer(model.discriminator.parameters())
    generator = model.make_optimizer(model.generator.parameters())
    captions = toy.CAPTIONS[:2] * 8
    level = torch.tensor([-0.6, 0.6]).repeat(8)[:, None, None, None]
    for step in range(120):
        torch.manual_seed(step)
        images = (level + 0.1 * torch.randn(16, 3, toy.SIDE, toy.SIDE)).clamp(-1, 1)
        play = model.prepare(Batch(images, captions, captions))
        for optimizer, loss in (
            (discriminator, model.discriminator_loss), (generator, model.generator_loss),
        ):  # fmt: skip
            optimizer.zero_grad()
            loss(play).total.backward()
            optimizer.step()
    own, other = model.text(captions), model.text([*captions[1:], captions[0]])
    assert (model.judge(images, own) > model.judge(images, other)).all()
    dark, bright = (model.sample([caption] * 8, range(8)).mean() for caption in captions[:2])
    assert dark < -0.2
    assert bright > 0.2
