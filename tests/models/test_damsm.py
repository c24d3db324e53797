"""The DAMSM as a stage: what it trains, what it measures, and what is taken from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose
from torch import Tensor

import toy
from conftest import MINI_DAMSM, MINI_DATA, MINI_RUN
from salon import checkpoint, run, stages
from salon.config import build
from salon.models.damsm import Damsm, r_precision
from salon.nn.matching import ConvRegions, InceptionRegions, Matcher
from salon.text.base import TextTower
from salon.text.bilstm import BiLSTM


def made(text: TextTower | None = None) -> Damsm:
    torch.manual_seed(0)
    train = text is not None
    matcher = partial(
        Matcher, image=ConvRegions(channels=[8, 8], patch=2, level=0), features=8,
        project_text=not train, gammas=(4.0, 5.0, 10.0),
    )  # fmt: skip
    return Damsm(
        text=text or toy.clip(), train_text=train, matcher=matcher, vocabulary_captions=3,
        optimizer=partial(torch.optim.Adam, lr=1e-2), schedule=lambda *_: 1.0,
    )  # fmt: skip


def lstm() -> BiLSTM:
    torch.manual_seed(0)
    return BiLSTM(vocabulary=32, embedding=4, width=8, dropout=0.0, context=9, remember=9)


class Told(toy.ToyData):
    def captions(self, split: str, limit: int) -> Iterator[str]:
        assert split == "train"
        return itertools.islice(toy.CAPTIONS, limit)


def test_on_top_of_a_frozen_tower_only_the_layers_learn() -> None:
    module, rows = made(), toy.Rows()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    toy.fit(module, loggers=[rows])
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.startswith("text.")}
    assert {"matcher.words.weight", "matcher.sentence.weight", "matcher.regions.weight"} <= changed
    assert "matcher.whole.weight" in changed
    assert any(k.startswith("matcher.image.") for k in changed)
    told = rows.having("val/r_precision")
    assert len(told) == 2
    assert {"val/words", "val/sentence", "val/loss", "val/r_precision_chance"} <= set(told[0])


def test_a_tower_of_its_own_learns_its_words_and_its_weights() -> None:
    module = made(lstm())
    assert module.text.untaught
    before = module.text.lstm.weight_hh_l0_reverse.clone()
    toy.fit(module, data=Told())
    assert not torch.equal(module.text.lstm.weight_hh_l0_reverse, before)
    known = module.text.vocabulary.clone()
    assert not module.text.untaught
    words = {w for c in toy.CAPTIONS[:3] for w in c.split()}  # vocabulary_captions=3
    assert int((known < 2**31).sum()) == len(words) + 2
    module.trainer = SimpleNamespace(datamodule=None)  # a resumed run asks for no captions
    module.on_fit_start()
    assert torch.equal(module.text.vocabulary, known)


def test_a_tower_in_training_is_not_remembered() -> None:
    module = made(lstm())
    module.text.learn_vocabulary(iter(toy.CAPTIONS))
    first = module.read(toy.CAPTIONS).pooled.detach()
    with torch.no_grad():
        module.text.embedding.weight.mul_(3)
    assert not torch.equal(module.read(toy.CAPTIONS).pooled, first)


def test_it_learns_which_belongs_to_which() -> None:
    module = made(lstm())
    module.log = lambda *_, **__: None
    module.text.learn_vocabulary(iter(toy.CAPTIONS))
    images = -torch.ones(4, 3, 8, 8)
    images[1, :, ::2] = images[2, :, :, ::2] = images[3, :, 2:, 2:] = 1  # plain, stripes, a square
    batch = toy.batch(0)._replace(images=images)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=2e-2)
    losses = []
    for _ in range(60):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    text, seen = module.read(batch.captions), module.matcher.look(batch.images)
    found = r_precision(seen.whole, text.pooled, batch.captions, torch.Generator())
    assert found.precision == 1


def test_pretrained_parts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the running statistics of Inception's batch norms, and they stay out of checkpoints."""
    with torch.device("meta"):
        image = InceptionRegions(weights="torchvision")
        matcher = partial(
            Matcher, image=image, features=8, project_text=True, gammas=(4.0, 5.0, 10.0)
        )
        module = Damsm(
            text=toy.NoText(remember=1), train_text=False, matcher=matcher, vocabulary_captions=1,
            optimizer=partial(torch.optim.SGD, lr=1.0), schedule=lambda *_: 1.0,
        ).train()  # fmt: skip
    assert module.matcher.training
    assert not any(part.training for part in image.modules())
    assert not any(p.requires_grad for p in image.parameters())
    assert all(p.requires_grad for p in module.matcher.regions.parameters())
    assert "matcher.image." in module.elsewhere()


# -- R-precision -----------------------------------------------------------------------------------


def precision(whole: Tensor, sentences: Tensor, captions: list[str]) -> tuple[float, float]:
    found = r_precision(whole, sentences, captions, torch.Generator().manual_seed(0))
    return float(found.precision), float(found.chance)


def test_r_precision_among_few_is_the_best_of_all() -> None:
    torch.manual_seed(0)
    whole = torch.randn(40, 4)
    sentences = whole + 0.5 * torch.randn(40, 4)
    captions = [str(i) for i in range(40)]
    cosine = torch.nn.functional.cosine_similarity(whole[:, None], sentences[None], dim=2)
    expected = (cosine.argmax(1) == torch.arange(40)).float().mean().item()
    assert 0 < expected < 1
    found, chance = precision(whole, sentences, captions)
    assert found == pytest.approx(expected)
    assert chance == pytest.approx(1 / 40)
    assert precision(whole, whole, captions)[0] == 1


def test_r_precision_is_one_in_a_hundred_by_chance() -> None:
    torch.manual_seed(0)
    whole, sentences = torch.randn(2, 1500, 6)
    captions = [str(i) for i in range(1500)]
    found, chance = precision(whole, sentences, captions)
    assert chance == pytest.approx(0.01)
    assert 0.003 < found < 0.02


def test_equal_captions_are_no_wrong_ones() -> None:
    """Where they were drawn as wrong ones, their tie would be a miss."""
    whole = torch.eye(4)[[0, 0, 1, 2]]
    found, chance = precision(whole, whole, ["a", "a", "b", "c"])
    assert found == 1
    assert chance == pytest.approx((1 / 3 + 1 / 3 + 1 / 4 + 1 / 4) / 4)
    assert precision(whole, whole, ["a", "d", "b", "c"])[0] == 0.5


def test_a_collapsed_model_finds_nothing() -> None:
    same = torch.ones(5, 3)
    assert precision(same, same, list("abcde"))[0] == 0


# -- as a stage ------------------------------------------------------------------------------------


def test_published_sizes(hydra_conf: None) -> None:
    with torch.device("meta"):
        module = build(compose("train", ["model=damsm/paper"]).model, "model")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained == 721_152 + 2_075_320
    assert sum(p.numel() for p in module.text.lstm.parameters()) == 440_320


def test_precision_looks_at_all_images_together() -> None:
    """However many fit into one look."""
    module = made().eval()
    torch.manual_seed(1)
    images = torch.rand(70, 3, toy.SIDE, toy.SIDE) * 2 - 1
    captions = [toy.CAPTIONS[i % len(toy.CAPTIONS)] for i in range(70)]
    whole = module.matcher.look(images).whole
    sentences = module.read(captions).pooled
    expected = r_precision(whole, sentences, captions, torch.Generator().manual_seed(0))
    found = module.precision(images, captions)
    assert found.precision == expected.precision > 0
    assert found.chance == expected.chance
    assert not found.precision.requires_grad


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, mini_root: Path) -> Path:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from conftest import ROOT

    GlobalHydra.instance().clear()
    folder = tmp_path_factory.mktemp("damsm")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(
            "train",
            [
                "model=damsm/bilstm_tiny", *MINI_DATA, *MINI_RUN, *MINI_DAMSM, "model.text.width=8",
                f"data.root={mini_root}/data", f"stages_dir={mini_root}/stages",
            ],
        )  # fmt: skip
        run.train(cfg, folder)
    return folder


def test_both_sides_can_be_taken(stage: Path) -> None:
    module = checkpoint.load(stage)
    text = stages.take(stage, "text")
    assert isinstance(text.module, BiLSTM)
    assert not text.module.untaught
    other = build(text.config, "text")
    other.load_state_dict(text.module.state_dict())
    captions = ["a red circle", "a small blue square"]
    torch.testing.assert_close(other.eval()(captions).pooled, text.module(captions).pooled)
    matcher = stages.take(stage, "matcher")
    again: Any = build(matcher.config, "damsm")(width=8, pooled_width=8)
    again.load_state_dict(matcher.module.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(again.look(images).regions, module.matcher.look(images).regions)
