"""AttnGAN: attention over words, sizes as published, losses, and its DAMSM as a stage."""

from __future__ import annotations

import math
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
from conftest import MINI_DAMSM, nested
from salon import checkpoint, run, stages
from salon.config import build
from salon.models.attngan import AttnGAN, Generator, Play, WordAttention
from salon.nn.autoencoder import Moments
from salon.nn.matching import ConvRegions, Matcher
from salon.nn.tree import Critic
from salon.text.base import unit
from salon.text.bilstm import BiLSTM
from salon.types import Batch, Text

SIDE = 16
LENGTHS = [5, 2, 7, 1]
N, L, D = len(LENGTHS), max(LENGTHS), 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# -- word attention --------------------------------------------------------------------------------


def looked_at() -> tuple[WordAttention, Tensor, Tensor, Tensor]:
    """Attention, a map, tokens and their mask, of captions of mixed lengths."""
    mask = torch.arange(L) < torch.tensor(LENGTHS)[:, None]
    return WordAttention(width=D, channels=6), torch.randn(N, 6, 3, 4), torch.randn(N, L, D), mask


def test_each_place_shares_itself_out_among_its_own_captions_words() -> None:
    attention, h, tokens, mask = looked_at()
    context, share = attention(h, tokens, mask)
    assert context.shape == h.shape
    assert share.shape == (N, 12, L)
    torch.testing.assert_close(share.sum(2), torch.ones(N, 12))
    for i, length in enumerate(LENGTHS):
        assert not share[i, :, length:].any()
        assert (share[i, :, :length] > 0).all()


def test_attention_is_the_published_one() -> None:
    """At one place of one image, by hand: no scaling, and the context is of mapped words."""
    attention, h, tokens, mask = looked_at()
    context, _ = attention(h, tokens, mask)
    words = tokens[2, :7] @ attention.words.weight.T
    share = (words @ h[2, :, 1, 3]).softmax(0)
    torch.testing.assert_close(context[2, :, 1, 3], share @ words)


def test_more_padding_and_what_stands_there_change_nothing() -> None:
    attention, h, tokens, mask = looked_at()
    context, _ = attention(h, tokens, mask)
    other = tokens.masked_fill(~mask[:, :, None], 30.0)
    more = torch.cat([other, torch.randn(N, 4, D)], dim=1)
    longer = torch.cat([mask, torch.zeros(N, 4, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(attention(h, more, longer)[0], context)


def test_a_permuted_batch_is_permuted() -> None:
    """With a mask that is tiled over the batch, an image meets the padding of another one."""
    attention, h, tokens, mask = looked_at()
    context, share = attention(h, tokens, mask)
    order = torch.tensor([2, 0, 3, 1])
    other, other_share = attention(h[order], tokens[order], mask[order])
    torch.testing.assert_close(other, context[order])
    torch.testing.assert_close(other_share, share[order])
    alone, _ = attention(h[3:], tokens[3:, :1], mask[3:, :1])
    torch.testing.assert_close(alone, context[3:])


# -- networks --------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("overrides", "generator", "discriminators"),
    [
        ([], 7_084_592, [6_313_730, 19_424_002, 71_858_946]),
        (
            ["model.generator.channels=48", "model.generator.blocks=3",
             "model.discriminator.channels=96"],
            13_811_456, [13_304_450, 42_800_258, 160_774_274],
        ),
    ],
    ids=["birds", "coco"],
)  # fmt: skip
def test_published_sizes(
    hydra_conf: None, overrides: list[str], generator: int, discriminators: list[int]
) -> None:
    node = compose("train", ["model=attngan/paper", "data.resolution=256", *overrides]).model
    widths = {"width": 256, "pooled_width": 256}
    with torch.device("meta"):
        made = build(node.generator, "g")(**widths, resolution=256, scales=node.scales)
        judges = [
            build(node.discriminator, "d")(condition=256, resolution=256 // 2**i)
            for i in reversed(range(node.scales))
        ]
    assert count(made) == generator
    assert [count(judge) for judge in judges] == discriminators


def model(norm: str = "batch", **options: Any) -> AttnGAN:
    torch.manual_seed(0)
    text = toy.clip()
    given = {
        "text": text,
        "damsm": partial(
            Matcher, image=ConvRegions(channels=[8, 8], patch=2, level=0), features=8,
            project_text=True, gammas=(4.0, 5.0, 10.0),
        ),
        "generator": partial(Generator, channels=4, blocks=1, latent=5, condition=3),
        "discriminator": partial(Critic, channels=4, norm=norm),
        "resolution": SIDE, "scales": 2, "pairs": "roll", "damsm_weight": 5.0, "kl_weight": 1.0,
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
        "discriminator_optimizer": partial(torch.optim.Adam, lr=1e-3),
        "schedule": lambda *_: 1.0, "temperature": 1.0,
    }  # fmt: skip
    return AttnGAN(**{**given, **options})


def batch() -> Batch:
    images = torch.rand(4, 3, SIDE, SIDE) * 2 - 1
    return Batch(images, list(toy.CAPTIONS), list("abcd"))


def test_pictures_at_every_resolution() -> None:
    made = model(scales=2).eval()
    text = made.text(toy.CAPTIONS[:1])
    painted = made.generator(torch.randn(1, *made.latent_shape), text)
    assert [tuple(x.shape) for x in painted.images] == [(1, 3, 8, 8), (1, 3, 16, 16)]
    assert all(x.abs().max() <= 1 for x in painted.images)
    assert made.latent_shape == (8,)
    assert made.judge(painted.images[-1], text).shape == (1,)
    assert len(made.discriminator) == 2


def test_a_stage_sees_the_words_and_not_the_padding() -> None:
    made = model().eval()
    text, z = made.text(toy.CAPTIONS), torch.randn(4, *made.latent_shape)
    images = made.paint(z, text)
    padded = Text(
        nn.functional.pad(text.tokens, (0, 0, 0, 3), value=9.0),
        nn.functional.pad(text.mask, (0, 3)),
        text.pooled,
    )
    torch.testing.assert_close(made.paint(z, padded), images)
    others = Text(text.tokens.roll(1, 0), text.mask.roll(1, 0), text.pooled)
    assert (made.paint(z, others) - images).abs().max() > 1e-3


def test_all_that_is_random_comes_from_z() -> None:
    """Of z, also the part that draws the condition changes the picture; temperature scales it."""
    made = model().eval()
    text, z = made.text(toy.CAPTIONS[:2]), torch.randn(2, *made.latent_shape)
    torch.testing.assert_close(made.paint(z, text), made.paint(z, text), atol=0, rtol=0)
    for changed in (slice(0, 5), slice(5, 8)):
        other = z.clone()
        other[:, changed] += 1
        assert (made.paint(other, text) - made.paint(z, text)).abs().max() > 1e-4
    made.set_sampling(temperature=0.0)
    torch.testing.assert_close(made.paint(z, text), made.paint(0 * z, text))


def test_discriminators_see_the_real_image_at_their_own_size() -> None:
    made, images = model(), torch.rand(2, 3, SIDE, SIDE)
    small, large = made.pyramid(images)
    assert torch.equal(large, images)
    torch.testing.assert_close(small[:, :, 2, 3], images[:, :, 4:6, 6:8].mean((2, 3)))


def test_the_judge_is_the_mean_over_resolutions() -> None:
    made, text = model().eval(), None
    images, text = batch().images, made.text(toy.CAPTIONS)
    logits = [
        d.heads.joint(d.trunk(x), unit(text.pooled))
        for d, x in zip(made.discriminator, made.pyramid(images), strict=True)
    ]
    torch.testing.assert_close(made.judge(images, text), (logits[0] + logits[1]) / 2)


# -- losses ----------------------------------------------------------------------------------------


def silent(made: AttnGAN) -> AttnGAN:
    """With discriminators that say 0 to everything."""
    for judge in made.discriminator:
        for head in (judge.heads.joint_logit, judge.heads.alone_logit):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
    return made


def test_losses_of_undecided_discriminators() -> None:
    """For each resolution D's is 2 ln 2 (1.386294) and G's is 2 ln 2."""
    made = silent(model(damsm_weight=0.0, kl_weight=0.0))
    play = made.prepare(batch())
    assert made.discriminator_loss(play).total.item() == pytest.approx(2 * 1.386294, rel=1e-5)
    assert made.generator_loss(play).total.item() == pytest.approx(4 * math.log(2), rel=1e-5)


def test_the_discriminators_loss_is_the_joint_one() -> None:
    """Logits in closed form: (UR + R) / 2 + (UF + F + W) / 3, wrong pairs from the next caption."""
    made = model(scales=1)
    play, judge = made.prepare(batch()), made.discriminator[0]
    seen: list[tuple[Tensor, Tensor]] = []
    golden = {"real": [2.0, -1.0], "wrong": [0.5, 1.5], "fake": [-0.3, 0.7]}
    joint = iter(torch.tensor(golden[name]) for name in ("real", "wrong", "fake"))
    alone = iter((torch.tensor([1.0, 0.2]), torch.tensor([-2.0, 0.4])))
    judge.heads.joint = lambda h, condition: (seen.append((h, condition)), next(joint))[1]
    judge.heads.alone = lambda h: next(alone)
    loss = made.discriminator_loss(play)
    assert loss.total.item() == pytest.approx(1.483393, rel=1e-5)
    (real, right), (again, wrong), (fake, told) = seen
    assert real is again
    assert fake is not real
    assert torch.equal(right, unit(play.text.pooled))
    assert torch.equal(told, right)
    assert torch.equal(wrong, right.roll(-1, 0))
    assert loss.told["accuracy_real"].item() == 0.5
    assert loss.told["accuracy_wrong"].item() == 0
    assert loss.told["accuracy_fake"].item() == 0.5


def test_r1_is_of_all_that_every_discriminator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(norm="none", r1=r1.R1)

    def score(play: Play, images: Tensor) -> Tensor:
        said = []
        for judge, x in zip(made.discriminator, made.pyramid(images), strict=True):
            h = judge.trunk(x)
            said += [judge.heads.joint(h, play.condition), judge.heads.alone(h)]
        return torch.stack(said).sum(0)

    r1.check(made, batch(), lambda play: play.real, score, monkeypatch)


def test_r1_in_bfloat16() -> None:
    r1.fit_in_bfloat16(model(norm="none", r1=r1.R1), batch())


def test_damsm_and_kl_have_their_weights() -> None:
    made = model()
    play = made.prepare(batch())
    play = play._replace(
        painted=play.painted._replace(moments=Moments(torch.ones(4, 3), torch.zeros(4, 3)))
    )
    loss = made.generator_loss(play)
    told = {name: value.item() for name, value in loss.told.items()}
    assert told["kl"] == pytest.approx(0.5)  # per dimension of the condition, not their sum
    expected = told["adversarial"] + told["kl"] + 5 * (told["damsm_words"] + told["damsm_sentence"])
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_damsm_looks_at_the_largest_picture_and_teaches_it() -> None:
    made = silent(model(kl_weight=0.0))
    play = made.prepare(batch())
    loss = made.generator_loss(play)
    gradients = torch.autograd.grad(loss.total, play.painted.images)
    assert not gradients[0].any()
    assert gradients[1].abs().max() > 0


def test_equal_captions_are_not_held_apart() -> None:
    made = silent(model(kl_weight=0.0))
    images = torch.rand(4, 3, SIDE, SIDE)
    play = made.prepare(Batch(images, ["a red circle"] * 4, list("abcd")))
    told = made.generator_loss(play).told
    assert told["damsm_words"].item() == 0
    assert told["damsm_sentence"].item() == 0
    assert made.discriminator_loss(play).told["same_pairs"].item() == 1


def test_each_step_touches_its_own_network() -> None:
    made = model()
    play = made.prepare(batch())
    made.discriminator_loss(play).total.backward()
    assert all(p.grad is None for p in made.generator.parameters())
    assert all(p.grad is not None for p in made.discriminator.parameters())
    made.discriminator.requires_grad_(False)
    for parameter in made.discriminator.parameters():
        parameter.grad = None
    made.generator_loss(play).total.backward()
    assert all(p.grad is None for p in made.discriminator.parameters())
    assert all(p.grad is not None for p in made.generator.parameters())
    for part in (made.damsm, made.text):
        assert all(p.grad is None for p in part.parameters())


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match=r"model\.scales=4: 20 px"):
        model(resolution=20, scales=4)
    with pytest.raises(ValueError, match=r"model\.pairs='random'.*roll, strict"):
        model(pairs="random")
    other = Matcher(
        image=ConvRegions(channels=[8], patch=2, level=0), features=8, project_text=True,
        gammas=(4.0, 5.0, 10.0), width=5, pooled_width=6,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"damsm reads a text tower of 5.*has 8"):
        model(damsm=other)


# -- as a run --------------------------------------------------------------------------------------


def test_the_lstm_and_its_damsm_are_one_stage(
    mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """text=bilstm and model.damsm name the same training run, which happens once."""
    small = nested([*MINI_DAMSM, "model.text.width=8"])
    cfg = mini(
        "attngan/tiny", "text=bilstm", f"text.overrides={small}", "callbacks.quality=null",
        "model.damsm._stage_=damsm/bilstm_tiny", f"model.damsm.overrides={small}",
        f"stages_dir={tmp_path}/stages",
    )  # fmt: skip
    run.train(cfg, tmp_path / "run")
    made = checkpoint.load(tmp_path / "run")
    (folder,) = (tmp_path / "stages").glob("[!.]*")
    assert isinstance(made.text, BiLSTM)
    for part, name in ((made.text, "text"), (made.damsm, "matcher")):
        before = stages.take(folder, name).module.state_dict()
        after = part.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    images = made.sample(["a red circle", ""], [0, 1])
    assert images.isfinite().all()
