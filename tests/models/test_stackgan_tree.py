"""What the tree of StackGAN-v2 promises beyond the contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose
from torch import Tensor, nn

import r1
import toy
from salon.config import build
from salon.models.schedules import warmup_cosine
from salon.models.stackgan_tree import Branch, Generator, Play, StackGANTree
from salon.nn.tree import Critic, resized, tiled
from salon.text.base import unit
from salon.types import Batch

CAPTIONS = toy.CAPTIONS
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.999))
SIZES: dict[str, Any] = {
    "latent": 3, "condition": 5, "augmentation": "glu", "channels": 8, "blocks": 1, "branches": 2,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def tree(norm: str = "batch", **options: Any) -> StackGANTree:
    torch.manual_seed(0)
    sizes = {**SIZES, **{key: options.pop(key) for key in SIZES if key in options}}
    given: dict[str, Any] = {
        "resolution": 16, "pairs": "roll", "kl_weight": 2.0, "temperature": 1.0, "optimizer": ADAM,
        "discriminator_optimizer": ADAM, "schedule": warmup_cosine(warmup=0, final=1.0), **options,
    }  # fmt: skip
    return StackGANTree(
        text=toy.clip(), generator=partial(Generator, **sizes),
        discriminator=partial(Critic, channels=2, norm=norm), **given,
    )  # fmt: skip


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1, CAPTIONS, [""] * 4)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes(hydra_conf: None) -> None:
    cfg = compose("train", ["model=stackgan/tree_paper"])
    with torch.device("meta"):
        made = build(cfg.model.generator, "generator")(text_width=1024, resolution=256)
        critics = [
            build(cfg.model.discriminator, "discriminator")(
                condition=made.condition, resolution=side
            )
            for side in made.resolutions
        ]
    assert made.resolutions == [64, 128, 256]
    assert count(made) == 21_239_696
    assert [count(critic) for critic in critics] == [5_723_906, 18_834_178, 71_269_122]


def test_each_branch_doubles_the_side_and_hears_the_condition() -> None:
    torch.manual_seed(0)
    images, _ = tree(branches=3, resolution=32).generator(torch.randn(2, 8), torch.randn(2, 6))
    assert [image.shape for image in images] == [(2, 3, s, s) for s in (8, 16, 32)]
    assert all(image.abs().max() <= 1 for image in images)
    branch = Branch(4, condition=3, blocks=2).eval()
    h, c = torch.randn(2, 4, 8, 8), torch.randn(2, 3)
    out = branch(h, c)
    assert out.shape == (2, 2, 16, 16)
    assert (branch(h, -c) - out).abs().max() > 1e-3
    torch.testing.assert_close(out, branch.up(branch.blocks(branch.join(tiled(h, c)))))


def test_one_scale_is_a_plain_gan_of_that_size() -> None:
    model = tree(branches=1, resolution=8)
    assert len(model.discriminator) == 1
    assert model.sample(CAPTIONS[:1], [0]).shape == (1, 3, 8, 8)


def test_what_is_sampled_is_the_last_scale() -> None:
    model = tree().eval()
    z, text = torch.randn(2, 8), model.text(CAPTIONS[:2])
    assert model.latent_shape == (8,)
    images, _ = model.generator(z, unit(text.pooled))
    assert torch.equal(model.paint(z, text), images[-1])
    model.temperature = 0.0
    assert torch.equal(model.paint(z, text), model.paint(torch.zeros(2, 8), text))


# -- losses ----------------------------------------------------------------------------------------

R, W, F = torch.tensor([2.0, -1]), torch.tensor([0.5, 1.5]), torch.tensor([-0.3, 0.7])
REAL_ALONE, FAKE_ALONE = torch.tensor([1.0, 0.2]), torch.tensor([-2.0, 0.4])
# R + W + F + UR + UF and, the wrong pairs' images being real, UR again.
TERMS = 0.720095 + 1.337745 + 0.828771 + 0.455700 + 0.519972 + 0.455700


class Scripted(nn.Module):
    """A critic of one scale that knows what it is shown, and answers with given logits."""

    def __init__(self, play: Play, scale: int, sign: float) -> None:
        super().__init__()
        self.fake, self.mean, self.heads, self.sign = (
            play.fakes[scale], play.moments.mean, self, sign,
        )  # fmt: skip
        self.real = resized(play.real, self.fake.shape[-1])

    def trunk(self, images: Tensor) -> Tensor:
        return images

    def joint(self, images: Tensor, condition: Tensor) -> Tensor:
        if torch.equal(images, self.fake):
            return self.sign * F
        assert torch.equal(images, self.real)
        if torch.equal(condition, self.mean):
            return self.sign * R
        assert torch.equal(condition, self.mean[[1, 0]])
        return self.sign * W

    def alone(self, images: Tensor) -> Tensor:
        return self.sign * (FAKE_ALONE if torch.equal(images, self.fake) else REAL_ALONE)


@pytest.mark.parametrize(
    ("second", "discriminator", "adversarial"),
    [(1.0, 2 * TERMS, 2 * (0.628771 + 1.319972)), (0.0, TERMS + 4.158883, 1.948743 + 1.386294)],
)
def test_golden_losses(second: float, discriminator: float, adversarial: float) -> None:
    """Six unit terms for each scale; at logits of zero they are 6 ln 2, and the generator's 2."""
    model = tree()
    play = model.prepare(Batch(batch().images[:2], CAPTIONS[:2], ["", ""]))
    model.discriminator = nn.ModuleList([Scripted(play, 0, 1.0), Scripted(play, 1, second)])
    loss = model.discriminator_loss(play)
    torch.testing.assert_close(loss.total, torch.tensor(discriminator), atol=1e-5, rtol=0)
    told = model.generator_loss(play).told
    torch.testing.assert_close(told["adversarial"], torch.tensor(adversarial), atol=1e-5, rtol=0)


def test_the_divergence_is_a_mean_over_dimensions() -> None:
    model = tree()
    play = model.prepare(batch())
    mean, logvar = play.moments
    loss = model.generator_loss(play)
    wanted = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    torch.testing.assert_close(loss.told["kl"], wanted)
    torch.testing.assert_close(loss.total, loss.told["adversarial"] + 2 * wanted)


def test_each_loss_teaches_its_own_networks() -> None:
    model = tree().train()
    play = model.prepare(batch())
    model.discriminator_loss(play).total.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.discriminator.parameters())
    model.discriminator.zero_grad()
    model.discriminator.requires_grad_(False)
    model.generator_loss(play).total.backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


def test_r1_is_of_all_that_every_scales_critic_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tree(norm="none", r1=r1.R1)

    def score(play: Play, images: Tensor) -> Tensor:
        mean, said = play.moments.mean.detach(), []
        for critic, side in zip(model.critics, (8, 16), strict=True):
            h = critic.trunk(resized(images, side))
            said += [critic.heads.joint(h, mean), critic.heads.alone(h)]
        return torch.stack(said).sum(0)

    r1.check(model, batch(), lambda play: play.real, score, monkeypatch)


def test_r1_in_bfloat16() -> None:
    r1.fit_in_bfloat16(tree(norm="none", r1=r1.R1), batch())


def test_what_is_held_for_a_match_teaches_the_conditioning() -> None:
    model = tree(kl_weight=0.0).train()
    model.discriminator.requires_grad_(False)
    play = model.prepare(batch())
    model.generator_loss(play._replace(fakes=[f.detach() for f in play.fakes])).total.backward()
    weight = model.generator.augment.linear.weight
    assert weight.grad is not None
    assert weight.grad.any()
    assert all(p.grad is None for p in model.generator.root.parameters())


def test_judge_is_the_last_scales_logit_of_image_and_text() -> None:
    model = tree().eval()
    images, text = batch().images, model.text(CAPTIONS)
    critic = model.critics[-1]
    mean = model.generator.augment(unit(text.pooled), torch.zeros(4, 5))[1].mean
    wanted = critic.heads.joint(critic.trunk(images), mean)
    torch.testing.assert_close(model.judge(images, text), wanted)
    assert (model.judge(images, model.text(CAPTIONS[::-1])) - wanted).abs().min() > 1e-5


@pytest.mark.parametrize(
    "options", [{"branches": 0}, {"branches": 3, "resolution": 18}, {"branches": 5}]
)
def test_a_tree_that_cannot_be_halved_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"model\.generator\.branches={options['branches']}"):
        tree(**options)


def test_unknown_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.pairs='rol'; expected one of roll, strict"):
        tree(pairs="rol")
