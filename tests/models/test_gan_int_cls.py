"""What GAN-INT-CLS promises beyond the contract: Reed's networks, losses and order of steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

import r1
import toy
from salon.config import build
from salon.losses.pairs import roll
from salon.models.base import chance
from salon.models.gan_int_cls import Discriminator, GANIntCLS, Generator, Play, midpoints
from salon.nn.augment import DiffAugment
from salon.text.base import unit
from salon.types import Batch

R, W, FAKE = 0.720095, 1.337745, 0.828771  # cross-entropies of the logits below
REAL_LOGITS, WRONG_LOGITS, FAKE_LOGITS = [2.0, -1.0], [0.5, 1.5], [-0.3, 0.7]
SIDE = 16
ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999))
OFF = {"color": False, "translation": 0.0, "cutout": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


def gan(norm: str = "batch", **changes: Any) -> GANIntCLS:
    options: dict[str, Any] = {
        "text": toy.clip(),
        "generator": partial(Generator, latent=5, embedding=6, channels=2),
        "discriminator": partial(Discriminator, embedding=6, channels=4, norm=norm),
        "augment": DiffAugment(**OFF), "resolution": SIDE, "pairs": "roll", "wrong_weight": 0.5,
        "interpolation": 1.0, "temperature": 1.0, "optimizer": ADAM,
        "discriminator_optimizer": ADAM, "schedule": lambda *_: 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return GANIntCLS(**{**options, **changes})


def batch(number: int = 0, captions: list[str] | None = None) -> Batch:
    captions = captions or [*toy.CAPTIONS, *toy.CAPTIONS[:2]]
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(len(captions), 3, SIDE, SIDE, generator=generator) * 2 - 1
    return Batch(images, captions, [""] * len(captions))


class Says(nn.Module):
    """A discriminator that gives the logits it was given, in turn, and keeps what it was shown.

    Its maps are the images themselves."""

    def __init__(self, *logits: list[float]) -> None:
        super().__init__()
        self.logits, self.shown = list(logits), list[tuple[Tensor, Tensor]]()
        self.looks: list[Tensor] = []

    def image(self, images: Tensor) -> Tensor:
        self.looks.append(images.detach())
        return images

    def match(self, seen: Tensor, text: Tensor) -> Tensor:
        self.shown.append((seen.detach(), text))
        return torch.tensor(self.logits.pop(0), requires_grad=True)

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        return self.match(self.image(images), text)


class Paints(nn.Module):
    """A generator that keeps its noise and its texts."""

    latent = 5

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, Tensor]] = []

    def forward(self, z: Tensor, text: Tensor) -> Tensor:
        self.given.append((z, text))
        return z[:, :3, None, None].expand(-1, -1, SIDE, SIDE)


def staged(*logits: list[float], **changes: Any) -> tuple[GANIntCLS, Says, Paints]:
    model, says, paints = gan(**changes), Says(*logits), Paints()
    model.discriminator, model.generator = says, paints
    return model, says, paints


# -- networks --------------------------------------------------------------------------------------


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_published_sizes(hydra_conf: None) -> None:
    """As counted from the published code's layers; the text vector has 1024 entries."""
    cfg = compose("train", ["model=gan_int_cls/paper", "text=clip/rn50", "data.resolution=64"])
    sizes = {"text_width": 1024, "resolution": cfg.model.resolution}
    with torch.device("meta"):
        generator = build(cfg.model.generator, "generator")(**sizes)
        discriminator = build(cfg.model.discriminator, "discriminator")(**sizes)
        coco = Generator(latent=100, embedding=128, channels=196, **sizes)
    assert count(generator) == 18_905_472
    assert count(discriminator) == 4_030_080
    assert count(coco) == 41_101_080


def test_the_text_vector_of_rn50_has_1024_entries(hydra_conf: None) -> None:
    import open_clip

    tower = compose("train", ["text=clip/rn50"]).text
    assert (tower.name, tower.weights) in open_clip.list_pretrained()
    assert open_clip.get_model_config(tower.name)["embed_dim"] == 1024


def kinds(network: nn.Sequential) -> list[str]:
    short = {
        "ConvTranspose2d": "up", "Conv2d": "conv", "BatchNorm2d": "norm", "BatchNorm1d": "norm",
        "LeakyReLU": "leaky", "Bottleneck": "residual",
    }  # fmt: skip
    names = [type(layer).__name__ for layer in network]
    return [short.get(name, name.lower()) for name in names]


def test_where_there_is_an_activation() -> None:
    generator = Generator(text_width=8, resolution=64, latent=5, embedding=6, channels=4)
    up = ["up", "norm", "relu"]
    assert kinds(generator.image) == [*["up", "norm", "residual"] * 2, *up, *up, "up", "tanh"]
    assert kinds(generator.text) == ["linear", "leaky"]
    discriminator = Discriminator(text_width=8, resolution=64, embedding=6, channels=4)
    assert kinds(discriminator.image) == [
        "conv", "leaky", "conv", "norm", "leaky", "conv", "norm", "conv", "norm", "residual",
    ]  # fmt: skip
    assert kinds(discriminator.text) == ["linear", "norm", "leaky"]
    assert kinds(discriminator.joint) == ["conv", "norm", "leaky", "conv"]


def test_a_residual_block_adds_and_then_activates() -> None:
    generator = Generator(text_width=8, resolution=32, latent=5, embedding=6, channels=4).eval()
    block = generator.image[2]
    assert kinds(block.branch) == ["conv", "norm", "relu"] * 2 + ["conv", "norm"]
    assert [c.out_channels for c in block.branch if isinstance(c, nn.Conv2d)] == [8, 8, 32]
    nn.init.zeros_(block.branch[-1].weight)
    x = torch.randn(2, 32, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("resolution", [16, 32, 64, 128])
def test_images_and_logits_at_every_resolution(resolution: int) -> None:
    sizes = {"text_width": 8, "resolution": resolution, "embedding": 6, "channels": 4}
    generator, discriminator = Generator(latent=5, **sizes).eval(), Discriminator(**sizes).eval()
    text = torch.randn(1, 8)
    images = generator(torch.randn(1, 5), text)  # a batch of one, out of training
    assert images.shape == (1, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images, text).shape == (1,)
    assert discriminator(images.expand(3, -1, -1, -1), text.expand(3, -1)).shape == (3,)


@torch.no_grad()
def test_initialisation_and_biases() -> None:
    sizes = {"text_width": 400, "resolution": 64, "embedding": 64, "channels": 32}
    torch.manual_seed(0)
    for network in (Generator(latent=50, **sizes), Discriminator(**sizes)):
        scales = []
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                assert layer.bias is None
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                scales.append(layer.weight)
                assert layer.bias.abs().max() == 0
            elif isinstance(layer, nn.Linear):  # uniform to 1 / sqrt(400)
                assert layer.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.1)
                assert layer.bias.abs().max() > 0
        assert torch.cat(scales).mean().item() == pytest.approx(1, abs=0.005)
        assert torch.cat(scales).std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_without_normalisation_each_logit_is_of_its_own_image_and_text(norm: str) -> None:
    torch.manual_seed(0)
    network = Discriminator(text_width=8, resolution=64, embedding=6, channels=4, norm=norm)
    images, text = torch.randn(4, 3, 64, 64).requires_grad_(), torch.randn(4, 8).requires_grad_()
    logits = network(images, text)
    r1.assert_norm(network, norm, (logits, images), (logits, text))


def test_convolutions_have_the_layout_that_they_are_fastest_in() -> None:
    model = gan()
    for network in (model.generator, model.discriminator):
        weights = [p for p in network.parameters() if p.dim() == 4]
        assert weights
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "loss"), [(0.5, 1.803353), (0.0, R + FAKE), (1.0, R + W), (0.25, 1.676110)]
)
def test_discriminator_loss_of_known_logits(weight: float, loss: float) -> None:
    model, _, _ = staged(REAL_LOGITS, WRONG_LOGITS, FAKE_LOGITS, wrong_weight=weight)
    total, told = model.discriminator_loss(model.prepare(batch(captions=toy.CAPTIONS[:2])))
    assert total.item() == pytest.approx(loss, abs=2e-6)
    assert {name: value.item() for name, value in told.items()} == {
        "accuracy_real": 0.5, "accuracy_wrong": 0.0, "accuracy_fake": 0.5, "same_pairs": 0.0,
    }  # fmt: skip


def test_what_the_discriminator_is_shown() -> None:
    """Wrong pictures under right texts, and no midpoint. It looks at a real picture once."""
    model, says, paints = staged([0.0], [0.0], [0.0])
    made = batch(captions=[*toy.CAPTIONS[:3], toy.CAPTIONS[2]])
    play = model.prepare(made)
    _, told = model.discriminator_loss(play)
    text = unit(model.text(made.captions).pooled)
    real, wrong, fake = says.shown
    assert all(torch.equal(pair[1], text) for pair in says.shown)
    assert torch.equal(real[0], made.images)
    assert torch.equal(wrong[0], made.images.roll(-1, 0))
    assert torch.equal(fake[0], paints(paints.given[0][0], text))
    assert len(says.looks) == 2
    assert all(map(torch.equal, says.looks, [made.images, fake[0]]))
    assert told["same_pairs"].item() == 0.25  # the last two captions


def test_a_wrong_pair_is_judged_as_if_it_were_looked_at_again() -> None:
    """Batch normalisation, too, sees the same images in another order."""
    torch.manual_seed(0)
    d, images, text = gan().discriminator, batch().images, torch.randn(6, 6)
    again = d(images.roll(-1, 0), text)
    torch.testing.assert_close(d.match(d.image(images).roll(-1, 0), text), again)
    assert (d(images, text) - again).abs().min() > 1e-6


def test_r1_is_of_what_d_says_to_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the images as they were before they were augmented."""
    model = gan(norm="none", r1=r1.R1, augment=lambda x: 0.5 * x)
    score = lambda play, x: model.discriminator(0.5 * x, play.text)  # noqa: E731
    r1.check(model, batch(), lambda play: play.images, score, monkeypatch)


def test_r1_in_bfloat16() -> None:
    r1.fit_in_bfloat16(gan(norm="none", r1=r1.R1), batch())


def test_strict_pairs_never_have_one_caption() -> None:
    model, says, _ = staged([0.0], [0.0], [0.0], pairs="strict")
    made = batch(captions=[toy.CAPTIONS[0], toy.CAPTIONS[0], toy.CAPTIONS[1]])
    _, told = model.discriminator_loss(model.prepare(made))
    assert told["same_pairs"].item() == 0
    assert torch.equal(says.shown[1][0][0], made.images[2])
    with pytest.raises(ValueError, match="all captions"):
        model.prepare(batch(captions=[toy.CAPTIONS[0]] * 3))


def test_generator_loss_of_known_logits() -> None:
    """Two texts and one midpoint: (2 FAKE + w_int b) / 3."""
    made, between = batch(captions=toy.CAPTIONS[:2]), 1.5
    b = math.log(1 + math.exp(-between))
    given = FAKE - sum(FAKE_LOGITS) / 2  # softplus(-x) = softplus(x) - x
    for weight, loss in ((1.0, (2 * given + b) / 3), (0.0, 2 / 3 * given), (None, given)):
        logits = FAKE_LOGITS if weight is None else [*FAKE_LOGITS, between]
        model, _, _ = staged(logits, interpolation=weight)
        total, _ = model.generator_loss(model.prepare(made))
        assert total.item() == pytest.approx(loss, abs=2e-6)


def test_the_generators_batch() -> None:
    """1.5 N texts, with midpoints of the batch's halves, and noise that D's step did not see."""
    model, says, paints = staged([0.0], [0.0], [0.0], [0.0] * 9, [0.0] * 9)
    play = model.prepare(batch())  # 6 captions: 0 1 2 3 0 1
    model.discriminator_loss(play)
    model.generator_loss(play)
    model.generator_loss(play)
    text, t = paints.given[1][1], play.text
    assert torch.equal(text[:6], t)
    torch.testing.assert_close(text[6:], torch.stack([t[0] + t[3], t[1] + t[0], t[2] + t[1]]) / 2)
    assert torch.equal(says.shown[3][1], text), "D reads the text that the image was made for"
    seen = torch.cat([z for z, _ in paints.given])
    assert seen.shape == (6 + 9 + 9, 5)
    assert len(seen.unique(dim=0)) == len(seen)
    assert abs(seen.std().item() - 1) < 0.25


def test_midpoints() -> None:
    text = torch.randn(3, 4)
    torch.testing.assert_close(midpoints(torch.cat([text, text])), text)
    assert midpoints(torch.randn(7, 4)).shape == (3, 4)
    assert midpoints(torch.randn(1, 4)).shape == (0, 4)


@pytest.mark.parametrize("step", ["discriminator_loss", "generator_loss"])
def test_everything_that_d_sees_in_training_is_augmented(step: str) -> None:
    model, says, _ = staged([0.0], [0.0], [0.0], augment=lambda x: x * 0 + 7)
    getattr(model, step)(model.prepare(batch(captions=toy.CAPTIONS[:2])))
    assert says.shown
    assert all((images == 7).all() for images, _ in says.shown)
    shown = len(says.shown)
    model.discriminator.logits = [[0.0]]
    model.judge(torch.ones(2, 3, SIDE, SIDE), model.text(toy.CAPTIONS[:2]))
    assert all((images == 1).all() for images, _ in says.shown[shown:])


def test_gradients_stay_with_their_network() -> None:
    model = gan().train()
    play = model.prepare(batch())
    model.discriminator_loss(play).total.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    # All but the bias before the text's batch normalisation, whose gradient is 0.
    assert all(p.grad.abs().sum() > 0 for p in model.discriminator.parameters() if p.dim() > 1)
    model.discriminator.zero_grad()
    model.discriminator.requires_grad_(False)
    model.generator_loss(play).total.backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.generator.parameters())
    assert all(p.grad is None for p in model.text.parameters())


def test_without_training_the_text_is_read_as_in_training() -> None:
    """As a direction: how long the tower's vectors are decides nothing."""
    model = gan().eval()
    text, z = model.text(toy.CAPTIONS), torch.randn(4, 5)
    painted = model.paint(z, text)
    torch.testing.assert_close(painted, model.generator(z, unit(text.pooled)))
    judged = model.judge(painted, text)
    torch.testing.assert_close(judged, model.discriminator(painted, unit(text.pooled)))
    louder = text._replace(pooled=3 * text.pooled)
    torch.testing.assert_close(model.paint(z, louder), painted)
    torch.testing.assert_close(model.judge(painted, louder), judged)
    model.set_sampling(temperature=0.5)
    torch.testing.assert_close(model.paint(2 * z, text), painted)


# -- training --------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def by_hand(model: GANIntCLS, batches: list[Batch]) -> None:
    """The published code's closures, one after the other, written out; there D looks at the real
    images once more to see the wrong ones."""
    g, d = model.generator, model.discriminator
    g_adam, d_adam = ADAM(g.parameters()), ADAM(d.parameters())
    for tick, (images, captions, *_) in enumerate(batches):
        torch.manual_seed(chance(0, tick, 0))
        t = unit(model.text(captions).pooled)
        n = len(t)
        d_adam.zero_grad()
        seen = d.image(images)
        real = cross_entropy(d.match(seen, t), 1)
        wrong = cross_entropy(d.match(seen[[*range(1, n), 0]], t), 0)
        fake = cross_entropy(d(g(torch.randn(n, 5, dtype=t.dtype), t).detach(), t), 0)
        (real + 0.5 * wrong + 0.5 * fake).backward()
        d_adam.step()
        g_adam.zero_grad()
        t = torch.cat([t, 0.5 * (t[: n // 2] + t[n // 2 :])])
        cross_entropy(d(g(torch.randn(n + n // 2, 5, dtype=t.dtype), t), t), 1).backward()
        g_adam.step()


def test_three_batches_equal_a_loop_by_hand() -> None:
    """In float64: Adam makes whole steps of a rounding error where the gradient is zero."""
    model = gan().double().train()
    twin = copy.deepcopy(model)
    batches = [b._replace(images=b.images.double()) for b in map(batch, range(3))]
    by_hand(twin, batches)
    before = copy.deepcopy(model.state_dict())
    trainer = toy.trainer([], batches=3, validate_every=3)
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=0)
    still = [n for n, v in model.named_parameters() if (v - before[n]).abs().max() < 1e-4]
    frozen = [n for n in still if n.startswith("text.")]
    # A bias before a batch normalisation has no gradient.
    assert [n for n in still if n not in frozen] == ["discriminator.text.0.bias"]


def test_it_learns_which_text_belongs_to_which_image() -> None:
    """Two flat colors: D prefers the right caption, and G paints the color that it is told."""
    model = gan(pairs="strict").train()
    d_adam, g_adam = ADAM(model.discriminator.parameters()), ADAM(model.generator.parameters())
    captions = toy.CAPTIONS[:2] * 8  # "a red circle", "a blue square"
    colors = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]).repeat(8, 1)
    torch.manual_seed(1)
    for _ in range(180):
        images = colors[:, :, None, None] + 0.1 * torch.randn(16, 3, SIDE, SIDE)
        play = model.prepare(Batch(images, captions, [""] * 16))
        d_adam.zero_grad()
        model.discriminator_loss(play).total.backward()
        d_adam.step()
        g_adam.zero_grad()
        loss = model.generator_loss(play).total
        loss.backward()
        g_adam.step()
        assert loss.isfinite()
    model.eval()
    right, wrong = model.text(captions), model.text([*captions[1:], captions[0]])
    assert ((model.judge(images, right) - model.judge(images, wrong)) > 0).all()
    painted = model.sample(captions, range(16)).mean((2, 3))
    redness = (painted[:, 0] - painted[:, 2]).view(8, 2)  # of red circles, of blue squares
    assert redness[:, 0].min() > redness[:, 1].max() + 0.5


# -- configs and mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.pairs=rolled"], "expected one of roll, strict"),
        (["model.wrong_weight=1.5"], "expected a share from 0 to 1"),
        (["data.resolution=24"], "doubles a map of 4 x 4"),
        (["data.resolution=8"], "doubles a map of 4 x 4"),
        (["data.resolution=256", "model.generator.channels=6"], "to multiples of 4"),
        (["model.discriminator.norm=layer"], "norm='layer'; expected one of batch, none"),
        (["model.discriminator.norm=batch"], r"model\.r1 .*model\.discriminator\.norm=none"),
        (["model.r1.gamma=0"], r"model\.r1\.gamma=0; .*model\.r1=null"),
        (["model.r1.every=0"], r"model\.r1\.every=0; .*at least 1"),
    ],
)
def test_mistakes(mini: Callable[..., DictConfig], overrides: list[str], says: str) -> None:
    cfg = mini("gan_int_cls/tiny", *overrides)
    with pytest.raises(ValueError, match=says):
        build(cfg.model, "model", text=toy.clip())


@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_its_relatives_are_overrides_of_it(hydra_conf: None, size: str) -> None:
    """Of GAN-CLS, D's wrong pairs alone; of GAN-INT, the midpoints alone."""
    for overrides, texts, weight in (
        ([], 6, 0.5),
        (["model.interpolation=null"], 4, 0.5),
        (["model.wrong_weight=0"], 6, 0.0),
    ):
        small = [f"model.{part}.channels=4" for part in ("generator", "discriminator")]
        small.append("model.r1=null")  # given logits have no slope
        cfg = compose("train", [f"model=gan_int_cls/{size}", *small, *overrides])
        model = build(cfg.model, "model", text=toy.clip())
        model.generator = paints = Paints()
        model.discriminator = Says(REAL_LOGITS, WRONG_LOGITS, FAKE_LOGITS, [0.0] * texts)
        play = Play(torch.zeros(4, 3, 32, 32), torch.randn(4, 6), roll(toy.CAPTIONS))
        loss = model.discriminator_loss(play).total.item()
        assert loss == pytest.approx(R + weight * W + (1 - weight) * FAKE, abs=2e-6)
        model.generator_loss(play)
        assert len(paints.given[1][1]) == texts
