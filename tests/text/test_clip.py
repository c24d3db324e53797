"""The text tower: its tokens, its memory, its vocabulary, and what it says when it cannot."""

from __future__ import annotations

import logging
from pathlib import Path

import open_clip
import pytest
import torch

from salon.text import clip
from salon.text.clip import ClipTower

CAPTIONS = ["a small red circle", "a large blue square above a green cross", "a small red circle"]
VISION = {"patch_size": 8, "layers": 1, "width": 16, "head_width": 8}


@pytest.fixture
def tower() -> ClipTower:
    torch.manual_seed(0)
    made = clip.custom(
        embed_dim=8, image_size=16, vision=VISION, text={"layers": 2, "width": 12, "heads": 2},
        context=12, vocabulary=32, embedding_std=0.02, remember=3,
    )  # fmt: skip
    made.learn_vocabulary(iter(CAPTIONS))
    return made.requires_grad_(False).eval()


def test_shapes(tower: ClipTower) -> None:
    text = tower(CAPTIONS)
    assert text.tokens.shape == (3, 10, 12)  # eight words and two ends
    assert text.mask.sum(1).tolist() == [6, 10, 6]
    assert text.pooled.shape == (3, 8)
    assert tower.encode_images(torch.zeros(2, 3, 32, 32)).shape == (2, 8)


def test_it_is_open_clips_own_forward() -> None:
    """At open_clip's own vocabulary: cropping the padding changes nothing that is kept."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        8,
        vision_cfg={"image_size": 16, "patch_size": 8, "layers": 1, "width": 16, "head_width": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "layers": 2, "width": 16, "heads": 2},
    ).eval()
    half = (0.5, 0.5, 0.5)
    tower = ClipTower(model, image_mean=half, image_std=half, vocabulary=None, remember=10)
    tokens = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(tower(CAPTIONS).pooled, model.encode_text(tokens))
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        torch.testing.assert_close(tower.encode_images(images), model.encode_image(images))


def test_a_caption_does_not_depend_on_its_neighbours(tower: ClipTower) -> None:
    alone, among = tower.encode(CAPTIONS[:1]), tower.encode(CAPTIONS)
    torch.testing.assert_close(alone.pooled[0], among.pooled[0])
    torch.testing.assert_close(alone.tokens[0], among.tokens[0, : alone.tokens.shape[1]])


def test_repeated_captions_are_not_computed_again(
    tower: ClipTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = ClipTower.encode

    def spy(self: ClipTower, captions: list[str]) -> object:
        asked.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(ClipTower, "encode", spy)
    first = tower(CAPTIONS)
    assert asked == CAPTIONS[:2]
    again = tower(CAPTIONS)
    assert asked == CAPTIONS[:2]
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.mask, again.mask)
    tower(["a cross", "a square", "a circle"])  # remember=3: the others are forgotten
    tower(CAPTIONS[:1])
    assert asked[-1] == CAPTIONS[0]
    assert len(tower._memory) <= 3


def test_the_memory_is_forgotten_with_the_weights(tower: ClipTower) -> None:
    before = tower(CAPTIONS[:1]).pooled
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    state["clip.ln_final.bias"] += 1
    tower.load_state_dict(state)
    assert not torch.equal(tower(CAPTIONS[:1]).pooled, before)
    tower(CAPTIONS[:1])
    tower.double()
    assert tower(CAPTIONS[:1]).pooled.dtype == torch.float64


def test_what_is_remembered_serves_inside_autocast_and_outside(tower: ClipTower) -> None:
    """Training in bfloat16 meets a caption first, and sampling outside autocast meets it again."""
    plain = tower(CAPTIONS[:1])
    tower._memory.clear()
    with torch.autocast("cpu", torch.bfloat16):
        tower(CAPTIONS[:1])
    again = tower(CAPTIONS[:1])
    assert again.pooled.dtype == again.tokens.dtype == torch.float32
    torch.testing.assert_close(again.pooled, plain.pooled, rtol=0, atol=0)


def test_compact_vocabulary(tower: ClipTower, caplog: pytest.LogCaptureFixture) -> None:
    known, _ = tower.token_ids(["a red square"])
    assert len(set(known[0].tolist())) == 5, "every known word has a row of its own"
    assert not caplog.records
    strange, _ = tower.token_ids(["a red zebra"])
    assert strange[0, 3] == 31, "an unknown word has the last row"
    assert "'zebra'" in caplog.text
    caplog.clear()
    tower.token_ids(["a zebra"])
    assert not caplog.records, "said once"


def test_the_vocabulary_keeps_the_most_frequent_words() -> None:
    tower = clip.custom(
        embed_dim=8, image_size=16, vision=VISION, text={"layers": 1, "width": 8, "heads": 2},
        context=12, vocabulary=5, embedding_std=0.02, remember=3,
    )  # fmt: skip
    tower.learn_vocabulary(iter(["red circle", "red square", "red circle", "cross"]))
    rows = tower.token_ids(["red circle cross"])[0][0, 1:4].tolist()
    assert len(set(rows[:2])) == 2
    assert 4 not in rows[:2]
    assert rows[2] == 4


def test_a_long_caption_is_cut_and_it_says_where(
    tower: ClipTower, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ids, mask = tower.token_ids(["a small red circle " * 5])
    assert ids.shape == (1, 12)
    assert mask.all()
    assert "prompt of 20 tokens is longer than the 10" in caplog.text
    assert "cut after 'a small red circle a small red circle a small'" in caplog.text


def test_empty_caption(tower: ClipTower) -> None:
    text = tower([""])
    assert text.mask.sum() == 2
    assert text.tokens.isfinite().all()


def test_pretrained_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = clip.pretrained(name="ViT-S-32-alt", weights=str(tmp_path / "weights.pt"), remember=5)
    assert torch.equal(tower.clip.ln_final.weight, model.ln_final.weight)
    assert torch.equal(tower.clip.token_embedding.weight, model.token_embedding.weight)
    assert tower(["a red circle"]).tokens.shape[-1] == tower.width


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("ViT-B-33", "openai", "ViT-B-32"),
        ("ViT-B-32", "laion3b", "its tags are .*laion2b_s34b_b79k"),
        ("ViT-B-32", "/no/such/file.pt", "neither a file nor a tag"),
    ],
)
def test_unknown_towers_are_explained(name: str, weights: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        clip.pretrained(name=name, weights=weights, remember=5)


def test_a_failed_download_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(ValueError, match=r"no network.*text\.weights=PATH"):
        clip.pretrained(name="ViT-B-32", weights="openai", remember=5)


def test_a_resnet_sees_images_of_any_size() -> None:
    tower = clip.custom(
        embed_dim=8, image_size=32, vision={"layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
        text={"layers": 1, "width": 8, "heads": 2}, context=12, vocabulary=5,
        embedding_std=0.02, remember=3,
    )  # fmt: skip
    assert tower.eval().encode_images(torch.zeros(2, 3, 48, 48)).shape == (2, 8)


def test_an_unknown_field_of_open_clips_is_named() -> None:
    with pytest.raises(ValueError, match=r"vision\.widht.*nearest is 'width'"):
        clip.custom(
            embed_dim=8, image_size=32, vision={"widht": 8}, text={}, context=12, vocabulary=5,
            embedding_std=0.02, remember=3,
        )  # fmt: skip


def test_words_start_apart_and_stay_apart() -> None:
    """At open_clip's own 0.02 they would start almost alike beside what training adds."""
    torch.manual_seed(0)
    tower = clip.custom(
        embed_dim=8, image_size=16, vision=VISION, text={"layers": 1, "width": 64, "heads": 2},
        context=12, vocabulary=32, embedding_std=1.0, remember=3,
    )  # fmt: skip
    words = tower.clip.token_embedding.weight
    assert words.std().item() == pytest.approx(1.0, rel=0.05)
    assert tower.clip.positional_embedding.std().item() == pytest.approx(0.5, rel=0.1)
    # Independent in 64 dimensions: sqrt(2 x 64) apart.
    apart = torch.pdist(words.detach())
    assert apart.min() > 0.6 * (2 * 64) ** 0.5
