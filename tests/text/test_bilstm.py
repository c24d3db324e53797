"""The bidirectional LSTM as a text tower: lengths, ends, vocabulary, size."""

from __future__ import annotations

import logging

import pytest
import torch

from salon.text.bilstm import BiLSTM

CAPTIONS = ["a small red circle", "a large blue square above a green cross", "red"]


@pytest.fixture
def tower() -> BiLSTM:
    torch.manual_seed(0)
    made = BiLSTM(vocabulary=24, embedding=6, width=8, dropout=0.5, context=10, remember=9)
    made.learn_vocabulary(iter(CAPTIONS))
    return made.eval()


def test_shapes(tower: BiLSTM) -> None:
    text = tower.encode(CAPTIONS)
    assert text.tokens.shape == (3, 8, 8)
    assert text.mask.sum(1).tolist() == [4, 8, 1]
    assert text.pooled.shape == (3, 8)
    assert (tower.width, tower.pooled_width) == (8, 8)
    assert not text.tokens[~text.mask].any()


def test_a_caption_does_not_depend_on_its_neighbours(tower: BiLSTM) -> None:
    """The backward direction starts at each caption's own last word, whatever the padding."""
    among = tower.encode(CAPTIONS)
    for i, caption in enumerate(CAPTIONS):
        alone = tower.encode([caption])
        torch.testing.assert_close(alone.pooled[0], among.pooled[i])
        length = alone.tokens.shape[1]
        torch.testing.assert_close(alone.tokens[0], among.tokens[i, :length])


def test_the_caption_is_the_last_state_of_each_direction(tower: BiLSTM) -> None:
    text = tower.encode(CAPTIONS)
    for i, length in enumerate(text.mask.sum(1).tolist()):
        torch.testing.assert_close(text.pooled[i, :4], text.tokens[i, length - 1, :4])
        torch.testing.assert_close(text.pooled[i, 4:], text.tokens[i, 0, 4:])


def test_words_see_what_stands_on_both_sides(tower: BiLSTM) -> None:
    one, other = (tower.encode([f"a {w} red {v}"]).tokens[0] for w, v in (("small", "cross"),) * 2)
    torch.testing.assert_close(one, other)
    before, after = tower.encode(["a large red cross"]), tower.encode(["a small red square"])
    for changed in (before, after):
        assert (changed.tokens[0, 2] - one[2]).abs().max() > 1e-4


def test_a_caption_without_words_is_one_token(tower: BiLSTM) -> None:
    text = tower.encode(["", "a red circle"])
    assert text.mask.sum(1).tolist() == [1, 3]
    assert text.tokens.isfinite().all()


def test_a_long_prompt_and_an_unknown_word_are_said(
    tower: BiLSTM, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        text = tower.encode(["a red circle a red circle a red circle a red", "a zebra"])
    assert text.mask.sum(1).tolist() == [10, 2]
    assert "is longer than the 10" in caplog.text
    assert "cut after 'a red circle a red circle a red circle a'" in caplog.text
    assert "'zebra'" in caplog.text


def test_the_vocabulary_travels_with_the_weights(tower: BiLSTM) -> None:
    other = BiLSTM(vocabulary=24, embedding=6, width=8, dropout=0.5, context=10, remember=9).eval()
    assert other.untaught
    assert not tower.untaught
    other.load_state_dict(tower.state_dict())
    assert not other.untaught
    torch.testing.assert_close(other(CAPTIONS).tokens, tower(CAPTIONS).tokens)


def test_dropout_is_for_training_alone(tower: BiLSTM) -> None:
    assert torch.equal(tower.encode(CAPTIONS).pooled, tower.encode(CAPTIONS).pooled)
    tower.train()
    assert not torch.equal(tower.encode(CAPTIONS).pooled, tower.encode(CAPTIONS).pooled)


def test_it_learns_and_its_memory_does_not(tower: BiLSTM) -> None:
    assert tower.encode(CAPTIONS).pooled.requires_grad
    assert not tower(CAPTIONS).pooled.requires_grad


def test_published_size() -> None:
    made = BiLSTM(vocabulary=5450, embedding=300, width=256, dropout=0.5, context=18, remember=1)
    assert sum(p.numel() for p in made.lstm.parameters()) == 440_320
    assert sum(p.numel() for p in made.parameters()) == 2_075_320
    assert made.embedding.weight.abs().max() <= 0.1
    assert made.embedding.weight.std() > 0.05


def test_an_odd_width_is_explained() -> None:
    with pytest.raises(ValueError, match=r"text\.width=7.*even"):
        BiLSTM(vocabulary=9, embedding=3, width=7, dropout=0.0, context=5, remember=1)
