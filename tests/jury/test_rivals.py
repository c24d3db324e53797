"""Differences between models, prompt by prompt."""

from __future__ import annotations

import numpy as np
import pytest

from made_up import benchmark
from salon.jury import rivals
from salon.jury.record import Record
from salon.jury.report import collect

LABELS = ("df_gan", "gan_int_cls", "cvae")


def told(shares: dict[str, float], *, alike: float = 0.0) -> list[Record]:
    """Models that obey so many of 400 prompts; `alike`: how far prompts are hard for all."""
    hard = np.random.default_rng(9).random(400)
    made = []
    for record in benchmark():
        if record.label not in shares:
            continue
        own = np.random.default_rng([LABELS.index(record.label), record.seed or 0]).random(400)
        hits = (alike * hard + (1 - alike) * own) < shares[record.label]
        made.append(record._replace(hits={"test": hits.astype(int).tolist()}))
    return made


def test_a_clear_difference_is_told_and_its_order_is_the_rankings() -> None:
    found = rivals.pairs(collect(told({"df_gan": 0.7, "cvae": 0.3})), "test")
    (pair,) = found
    assert (pair.one, pair.other) == ("df_gan", "cvae")
    assert pair.value == pytest.approx(0.4, abs=0.06)
    assert 0 < pair.low < pair.value < pair.high
    assert pair.p < 0.01


def test_no_difference_is_no_difference() -> None:
    (pair,) = rivals.pairs(collect(told({"df_gan": 0.5, "gan_int_cls": 0.5})), "test")
    assert pair.low < 0 < pair.high
    assert pair.p > 0.05


def test_what_is_hard_for_both_cancels() -> None:
    apart, paired = (
        rivals.pairs(collect(told({"df_gan": 0.5, "gan_int_cls": 0.45}, alike=alike)), "test")[0]
        for alike in (0.0, 0.9)
    )
    assert paired.high - paired.low < 0.8 * (apart.high - apart.low)


def test_more_pairs_ask_for_more() -> None:
    """Holm: the smallest p counts as often as there are pairs, and their order stays."""
    raw = [rivals.Pair(str(i), "", 0, 0, 0, p) for i, p in enumerate((0.03, 0.01, 0.04, 0.5))]
    assert [pair.p for pair in rivals._corrected(raw)] == pytest.approx([0.09, 0.04, 0.09, 0.5])


def test_records_that_do_not_tell_are_left_out() -> None:
    made = told({"df_gan": 0.7, "cvae": 0.3, "gan_int_cls": 0.5})
    silent = [one._replace(hits=None) if one.label == "cvae" else one for one in made]
    found = rivals.pairs(collect(silent), "test")
    assert [(pair.one, pair.other) for pair in found] == [("df_gan", "gan_int_cls")]
    assert rivals.section(collect([one._replace(hits=None) for one in made])) is None
    shown = rivals.section(collect(made))
    assert shown is not None
    assert shown.count("<tr>") == 1 + 3


def test_hits_survive_the_json() -> None:
    (record, *_) = told({"df_gan": 0.7})
    assert Record.from_json(record.to_json()).hits == record.hits
