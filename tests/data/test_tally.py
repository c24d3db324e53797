"""What is counted, when it is too much, and what is written down of it."""

from __future__ import annotations

import json

import pytest

from salon.data.reasons import Bad
from salon.data.tally import EXAMPLES, Drop, Patience, Tally

PATIENCE = Patience(
    max_bad_fraction=0.25, min_seen=8, max_consecutive=3, max_lost_shards=9, unreachable="skip"
)


def drop(reason: str, number: int = 0, source: str = "web") -> Drop:
    return Drop(source, reason, "a.tar", f"{number}", f"detail {number}")


def test_bad_and_filtered_are_counted_apart() -> None:
    tally = Tally()
    tally.add({"web": 6}, [drop("image_corrupt"), drop("filter:size"), drop("filter:size", 1)])
    assert (tally.bad, tally.filtered) == (1, 2)
    assert tally.bad_fraction == 1 / 7, "what was filtered is not in it"
    assert tally.metrics() == {
        "data/bad_fraction": 1 / 7,
        "data/filtered_fraction": 2 / 9,
        "data/bad/image_corrupt": 1,
        "data/filtered/size": 2,
    }


def test_the_shares_of_a_mixture_are_told() -> None:
    tally = Tally()
    tally.add({"web": 3, "art": 1}, [])
    assert tally.metrics()["data/share/web"] == 0.75
    assert tally.metrics()["data/share/art"] == 0.25


def test_the_first_examples_are_kept() -> None:
    tally = Tally()
    tally.add({}, [drop("image_corrupt", i) for i in range(9)])
    kept = tally.examples["web", "image_corrupt"]
    assert kept == [f"a.tar:{i}: detail {i}" for i in range(EXAMPLES)]
    assert Drop("web", "shard_missing", "a.tar", None, "").place == "a.tar"


def test_one_bad_sample_stops_nothing_and_a_fraction_does() -> None:
    tally = Tally()
    tally.add({"web": 1}, [drop("image_corrupt", i) for i in range(6)])
    tally.check(PATIENCE)  # 6 of 7, but 7 say nothing yet
    tally.add({"web": 17}, [])
    tally.check(PATIENCE)  # a quarter is allowed
    tally.add({}, [drop("caption_empty")])
    with pytest.raises(ValueError, match=r"7 of 25 .*28\.0%.*max_bad_fraction=0\.25.*image_corru"):
        tally.check(PATIENCE)


def test_a_strict_filter_stops_nothing() -> None:
    tally = Tally()
    tally.add({"web": 1}, [drop("filter:size", i) for i in range(1000)])
    tally.check(PATIENCE)


def test_a_report_is_plain_says_what_reasons_mean_and_can_be_read_back() -> None:
    tally = Tally()
    tally.add({"web": 6, "art": 2}, [drop("image_corrupt"), drop("filter:size", 3, "art")])
    report = json.loads(json.dumps(tally.report()))
    assert report["sources"]["web"]["dropped"]["image_corrupt"] == {
        "count": 1,
        "meaning": "a picture that cannot be decoded to its end",
        "examples": ["a.tar:0: detail 0"],
    }
    assert (report["used"], report["bad"], report["filtered"]) == (8, 1, 1)
    again = Tally.of(report)
    assert again.report() == tally.report()
    again.merge(tally)
    assert (again.used["web"], again.bad, again.filtered) == (12, 2, 2)


def test_a_reason_that_is_not_in_the_vocabulary_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        Bad("odd", "")
