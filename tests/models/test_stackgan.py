"""What StackGAN's two stages promise beyond the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig
from torch import Tensor, nn

import r1
import toy
from salon import checkpoint, run, stages
from salon.config import build, to_plain
from salon.models.schedules import warmup_cosine
from salon.models.stackgan import (
    Play,
    Stage,
    StageOne,
    StageOneCritic,
    StageOneGAN,
    StageTwo,
    StageTwoCritic,
    StageTwoGAN,
)
from salon.nn.autoencoder import Moments
from salon.nn.tree import resized
from salon.text.base import unit
from salon.types import Batch

CAPTIONS = toy.CAPTIONS
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
OPTIONS: dict[str, Any] = {
    "pairs": "roll", "kl_weight": 2.0, "temperature": 1.0, "optimizer": ADAM,
    "discriminator_optimizer": ADAM, "schedule": warmup_cosine(warmup=0, final=1.0),
}  # fmt: skip
ONE: dict[str, Any] = {
    "latent": 3, "condition": 5, "augmentation": "glu", "channels": 8, "bottlenecks": False,
    "resolution": 16, "reduction": 2,
}  # fmt: skip
TWO: dict[str, Any] = {"condition": 4, "augmentation": "glu", "channels": 8, "blocks": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


def stage_one(norm: str = "batch", **options: Any) -> StageOneGAN:
    torch.manual_seed(0)
    return StageOneGAN(
        text=toy.clip(), generator=partial(StageOne, **ONE),
        discriminator=partial(StageOneCritic, channels=2, norm=norm), **{**OPTIONS, **options},
    )  # fmt: skip


def stage_two(norm: str = "batch", **options: Any) -> StageTwoGAN:
    torch.manual_seed(0)
    given = {"stage_one": partial(StageOne, **ONE), "resolution": 16, **OPTIONS, **options}
    return StageTwoGAN(
        text=toy.clip(), generator=partial(StageTwo, **TWO),
        discriminator=partial(StageTwoCritic, channels=2, norm=norm), **given,
    )  # fmt: skip


MAKERS = [stage_one, stage_two]


def batch(side: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, side, side, generator=generator) * 2 - 1
    return Batch(images, CAPTIONS, [""] * 4)


# -- networks --------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


NARROW = ["model.generator.channels=128", "model.discriminator.channels=64"]


@pytest.mark.parametrize(
    ("model", "overrides", "generator", "discriminator"),
    [
        ("stage_one_paper", [], 20_020_832, 12_407_425),  # the PyTorch code's, for COCO
        ("paper", [], 37_130_480, 159_889_538),
        ("stage_one_paper", NARROW, 10_301_248, 5_715_713),  # and by default
        ("paper", [*NARROW, "model.generator.blocks=4"], 26_290_080, 71_269_122),
        # The TensorFlow code's 14,264,192, less a bias before a normalisation, plus our last map.
        (
            "stage_one_paper", [*NARROW, "model.generator.bottlenecks=true"],
            14_264_192 - 16 * 1024 + (128 * 64 * 9 + 2 * 64) - (128 - 64) * 3 * 9, 5_715_713,
        ),
    ],
)  # fmt: skip
def test_published_sizes(
    hydra_conf: None, model: str, overrides: list[str], generator: int, discriminator: int
) -> None:
    cfg = compose("train", [f"model=stackgan/{model}", "data.resolution=256", *overrides])
    sizes = {"sketch": 64, "resolution": 256} if model == "paper" else {}
    with torch.device("meta"):
        made = build(cfg.model.generator, "generator")(text_width=1024, **sizes)
        critic = build(cfg.model.discriminator, "discriminator")(
            condition=made.condition, resolution=sizes.get("resolution", 64)
        )
    assert count(made) == generator
    assert count(critic) == discriminator


@pytest.mark.parametrize("make", MAKERS)
def test_a_batch_of_one_is_drawn_in_range(make: Callable[[], Stage]) -> None:
    image = make().sample(CAPTIONS[:1], [0])
    assert image.shape == (1, 3, *(2 * [8 if make is stage_one else 16]))
    assert image.abs().max() <= 1
    assert image.std() > 0


@pytest.mark.parametrize("bottlenecks", [False, True])
def test_bottlenecks_are_a_choice_that_learns(bottlenecks: bool) -> None:
    torch.manual_seed(0)
    network = StageOne(text_width=6, **{**ONE, "bottlenecks": bottlenecks})
    network(torch.randn(4, 8), torch.randn(4, 6)).images.square().mean().backward()
    layers = list(network.layers.parameters())
    assert all(p.grad is not None and p.grad.any() for p in layers)
    assert any(p.shape[-2:] == (1, 1) for p in layers) is bottlenecks


def test_the_same_noise_serves_each_stage_its_own_part() -> None:
    """z and the first condition's noise decide the sketch; the rest decides Stage-II alone."""
    model = stage_two().eval()
    text = model.text(CAPTIONS[:1])
    assert model.latent_shape == (3 + 5 + 4,)
    torch.manual_seed(1)
    for parameter in model.parameters():  # untrained, it draws next to nothing
        parameter.data += 0.2 * torch.randn_like(parameter)
    z = torch.randn(1, 12)
    base = model.paint(z, text)
    for first, last in ((0, 3), (3, 8), (8, 12)):
        other = z.clone()
        other[:, first:last] += 3
        assert (model.paint(other, text) - base).abs().max() > 1e-3
    sketch = model.stage_one(z[:, :8], unit(text.pooled)).images
    wanted = model.generator(sketch, z[:, 8:], unit(text.pooled)).images
    assert torch.equal(base, wanted)
    model.temperature = 0.0
    assert torch.equal(model.paint(z, text), model.paint(torch.zeros(1, 12), text))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", [StageOneCritic, StageTwoCritic])
def test_without_normalisation_each_logit_is_of_its_own_image(
    kind: Callable[..., Any], norm: str
) -> None:
    torch.manual_seed(0)
    critic = kind(channels=2, condition=3, resolution=32, norm=norm)
    images = torch.randn(4, 3, 32, 32).requires_grad_()
    logits = critic.heads.joint(critic.trunk(images), torch.randn(4, 3))
    r1.assert_norm(critic, norm, (logits, images))


# -- losses ----------------------------------------------------------------------------------------

R, W, F = torch.tensor([2.0, -1]), torch.tensor([0.5, 1.5]), torch.tensor([-0.3, 0.7])
REAL_ALONE, FAKE_ALONE = torch.tensor([1.0, 0.2]), torch.tensor([-2.0, 0.4])


class Scripted(nn.Module):
    """A critic that knows what it is shown, and answers with given logits."""

    def __init__(self, play: Play) -> None:
        super().__init__()
        self.play, self.heads = play, self
        self.conditions: list[Tensor] = []

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def joint(self, images: Tensor, condition: Tensor) -> Tensor:
        self.conditions.append(condition)
        if torch.equal(images, self.play.fake):
            assert torch.equal(condition, self.play.moments.mean)
            return F
        assert torch.equal(images, self.play.real)
        if torch.equal(condition, self.play.moments.mean):
            return R
        assert torch.equal(condition, self.play.moments.mean[[1, 0]])
        return W

    def alone(self, images: Tensor) -> Tensor:
        return FAKE_ALONE if torch.equal(images, self.play.fake) else REAL_ALONE


@pytest.mark.parametrize(
    ("make", "discriminator", "adversarial"),
    [(stage_one, 1.803353, 0.628771), (stage_two, 1.483393, 0.628771 + 1.319972)],
)
def test_golden_losses(make: Callable[[], Stage], discriminator: float, adversarial: float) -> None:
    """R + (W + F) / 2, and (R + UR) / 2 + (F + UF + W) / 3."""
    model = make()
    two = Batch(batch().images[:2], CAPTIONS[:2], ["", ""])
    play = model.prepare(two)
    critic = Scripted(play)
    model.discriminator = critic  # type: ignore[assignment]
    loss = model.discriminator_loss(play)
    torch.testing.assert_close(loss.total, torch.tensor(discriminator), atol=1e-5, rtol=0)
    told = {name: float(value) for name, value in loss.told.items()}
    wanted = {"accuracy_real": 0.5, "accuracy_fake": 0.5, "accuracy_wrong": 0.0, "same_pairs": 0.0}
    assert told == wanted
    told = model.generator_loss(play).told
    torch.testing.assert_close(told["adversarial"], torch.tensor(adversarial), atol=1e-5, rtol=0)
    assert not any(condition.requires_grad for condition in critic.conditions)


@pytest.mark.parametrize(
    ("mean", "logvar", "divergence"), [(0.0, 0.0, 0.0), (1.0, 0.0, 0.5), (0.0, 1.0, 0.359141)]
)
@pytest.mark.parametrize("dims", [1, 7])
def test_divergence_is_a_mean_over_dimensions(
    mean: float, logvar: float, divergence: float, dims: int
) -> None:
    moments = Moments(torch.full((3, dims), mean), torch.full((3, dims), logvar))
    loss = stage_one().regularised(torch.tensor(0.25), moments)
    torch.testing.assert_close(loss.told["kl"], torch.tensor(divergence), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss.total, 0.25 + 2 * loss.told["kl"])


@pytest.mark.parametrize("make", MAKERS)
def test_each_loss_teaches_its_own_network(make: Callable[[], Stage]) -> None:
    model = make().train()
    play = model.prepare(batch())
    model.discriminator_loss(play).total.backward()
    # Not the fakes, and by mu detached neither the wrong pairs nor any others.
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.discriminator.zero_grad()
    model.discriminator.requires_grad_(False)
    model.generator_loss(play).total.backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize("make", MAKERS)
def test_the_discriminators_view_of_the_text_teaches_nobody(make: Callable[[], Stage]) -> None:
    model = make().train()
    model.discriminator.requires_grad_(False)
    play = model.prepare(batch())
    loss = model.generator_loss(play._replace(fake=play.fake.detach()))
    assert not loss.told["adversarial"].requires_grad
    assert loss.told["kl"].requires_grad


@pytest.mark.parametrize("make", MAKERS)
def test_fakes_do_not_change_what_is_said_of_real_images(make: Callable[[], Stage]) -> None:
    """Batch normalisation sees real images and fakes in passes of their own."""
    model = make().train()
    play = model.prepare(batch())
    one, other = (model.answers(play._replace(fake=fake)) for fake in (play.fake, 3 * play.fake))
    assert torch.equal(one.real, other.real)
    assert torch.equal(one.wrong, other.wrong)
    assert not torch.equal(one.fake, other.fake)


@pytest.mark.parametrize("make", MAKERS)
def test_r1_is_of_all_that_d_says_to_real_images(
    make: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(norm="none", r1=r1.R1)

    def score(play: Play, images: Tensor) -> Tensor:
        heads, seen = model.discriminator.heads, model.discriminator.trunk(images)
        joint = heads.joint(seen, play.moments.mean.detach())
        return joint if make is stage_one else joint + heads.alone(seen)

    r1.check(model, batch(), lambda play: play.real, score, monkeypatch)


@pytest.mark.parametrize("make", MAKERS)
def test_r1_in_bfloat16(make: Callable[..., Stage]) -> None:
    r1.fit_in_bfloat16(make(norm="none", r1=r1.R1), batch())


def test_stage_one_learns_from_smaller_images() -> None:
    model = stage_one()
    given = batch(32)
    assert torch.equal(model.prepare(given).real, resized(given.images, 8))
    text = model.text(CAPTIONS)
    model.eval()
    logits = model.judge(given.images, text)
    assert logits.shape == (4,)
    assert torch.equal(logits, model.judge(resized(given.images, 8), text))
    with pytest.raises(ValueError, match=r"data\.resolution=4: this network paints 8 px"):
        model.prepare(batch(4))


@pytest.mark.parametrize("make", MAKERS)
def test_judge_is_the_logit_of_image_and_text(make: Callable[[], Stage]) -> None:
    model = make().eval()
    play = model.prepare(batch())
    text = model.text(CAPTIONS)
    torch.testing.assert_close(model.judge(play.real, text), model.answers(play).real)


def test_stage_one_learns_which_color_was_asked_for() -> None:
    """After some steps on plain images of two colors, D prefers the right caption, and G draws the
    color that it is asked for."""
    adam = partial(ADAM, lr=3e-3)
    model = stage_one(pairs="strict", optimizer=adam, discriminator_optimizer=adam).train()
    optimizers = [
        model.make_discriminator_optimizer(model.discriminator.parameters()),
        model.make_optimizer(model.generator.parameters()),
    ]
    captions = CAPTIONS[:2] * 8  # a red circle, a blue square
    images = torch.full((16, 3, 8, 8), -0.8)
    images[0::2, 0] = images[1::2, 2] = 0.8
    plain = Batch(images, captions, [""] * 16)
    for step in range(180):
        torch.manual_seed(step)
        play = model.prepare(plain)
        for optimizer, loss in zip(
            optimizers, (model.discriminator_loss, model.generator_loss), strict=True
        ):
            optimizer.zero_grad()
            loss(play).total.backward()
            optimizer.step()
    model.eval()
    right = model.judge(images[:2], model.text(captions[:2]))
    wrong = model.judge(images[:2], model.text(captions[1::-1]))
    assert (right > wrong).all()
    red, blue = model.sample(captions, range(16)).mean((2, 3)).view(8, 2, 3).mean(0)
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3


# -- Stage-I inside Stage-II -----------------------------------------------------------------------


def test_stage_one_is_left_as_it_was() -> None:
    model = stage_two().train()
    before = {name: value.clone() for name, value in model.stage_one.state_dict().items()}
    assert not model.stage_one.training
    model.generator_loss(model.prepare(batch())).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.stage_one.parameters())
    for name, value in model.stage_one.state_dict().items():
        assert torch.equal(value, before[name]), name
    averaged = set(map(id, model.averaged.parameters()))
    assert not averaged & set(map(id, model.stage_one.parameters()))


def test_stage_one_is_trained_first_and_once_and_its_average_is_used(
    mini: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [f"stages_dir={tmp_path}/stages"]
    cfg = mini("stackgan/tiny", *places)
    trained = []
    train = run.train

    def counted(stage: DictConfig, folder: Path) -> float | None:
        trained.append(folder.name)
        return train(stage, folder)

    monkeypatch.setattr(run, "train", counted)
    train(cfg, tmp_path / "run")
    other = mini("stackgan/tiny", *places, "model.kl_weight=1.0")
    stages.parts(other, build(cfg.data, "data").identity, counted)
    # The text tower once, for both stages and both runs.
    assert sorted(name.rpartition("-")[0] for name in trained) == [
        "clip-tiny", "stackgan-stage_one_tiny",
    ]  # fmt: skip

    (folder,) = (tmp_path / "stages").glob("stackgan-stage_one_tiny-*")
    assert json.loads((folder / stages.SUMMARY).read_text())["batches"] == 2
    contents = checkpoint.read(folder)
    average, raw = contents["ema"]["average"], contents["state_dict"]
    model = checkpoint.load(tmp_path / "run")
    assert isinstance(model.stage_one, StageOne)
    assert model.stage_one.resolution == 8
    for name, value in average.items():
        assert torch.equal(model.stage_one.state_dict()[name], value), name
    assert any(not torch.equal(raw[f"generator.{name}"], value) for name, value in average.items())


def test_a_stage_one_of_another_text_tower_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tower 7 wide, and\s+text is one of 6.*text=NAME"):
        stage_two(stage_one=StageOne(text_width=7, **ONE))


@pytest.mark.parametrize("resolution", [8, 12, 24])
def test_a_resolution_that_stage_two_cannot_draw_is_refused(resolution: int) -> None:
    says = rf"data\.resolution={resolution}.*expected 16, 32, 64"
    with pytest.raises(ValueError, match=says):
        stage_two(resolution=resolution)


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_pairs_are_refused(make: Callable[..., Stage]) -> None:
    with pytest.raises(ValueError, match=r"model\.pairs='rol'; expected one of roll, strict"):
        make(pairs="rol")


def test_stages_of_a_size_fit_each_other(hydra_conf: None) -> None:
    """Each size names its own Stage-I: 16 to 32 px, and 64 to 256."""
    for size in ("tiny", "paper"):
        cfg = compose("train", [f"model=stackgan/{size}"])
        name = cfg.model.stage_one["_stage_"]
        assert name == f"stackgan/stage_one_{size}"
        first = to_plain(compose("train", [f"model={name}"]).model)["generator"]
        assert first["condition"] == cfg.model.generator.condition
        assert first["reduction"] == {"tiny": 2, "paper": 4}[size]
