"""Captions of the web: which one is taken, what is mended, what is refused."""

from __future__ import annotations

import pickle
import sys
import unicodedata
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from salon.data import captions
from salon.data.captions import CaptionRules, choose, make_rules
from salon.data.metadata import parse
from salon.data.reasons import BAD, Bad


def rules(*keys: str, **changes: Any) -> CaptionRules:
    plain = {"weights": None, "min_chars": 1, "max_chars": 100, "normalize": True}
    return make_rules(keys=keys or ("txt", "json:caption"), **plain | changes)


class NoChance:
    """In the place of a generator: whatever is asked of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"chance.{name} is asked where there is nothing to choose")


def caption(members: dict[str, bytes], metadata: Any = None, by: CaptionRules | None = None) -> str:
    return choose(members, metadata, by or rules(), NoChance())  # type: ignore[arg-type]


def txt(raw: bytes | str, **changes: Any) -> str:
    return caption({"txt": raw if isinstance(raw, bytes) else raw.encode()}, None, rules(**changes))


def reason(*asked: Any) -> str:
    with pytest.raises(Bad) as caught:
        caption(*asked)
    assert caught.value.reason in BAD
    return str(caught.value)


# -- what is mended ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a cat", "a cat"),
        ("  a \t\r\n  cat\x00\x00", "a cat"),
        ("a\x00cat\x1bon\x7fa\x85mat", "a cat on a mat"),
        ("a\u3000cat\u00a0on\u2028a\u2003mat", "a cat on a mat"),
        (b"\xef\xbb\xbfa cat", "a cat"),
        (b"\xef\xbb\xbf\xef\xbb\xbf a cat", "a cat"),
        ("cafe\u0301", "caf\u00e9"),
        ("x\u0315\u0300", "x\u0300\u0315"),  # marks in their canonical order
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("ﬁne №5 x²", "ﬁne №5 x²"),  # NFC, not NFKC
        ("a 👩‍👩‍👧 and 👍🏽 🇫🇷 ❤️", "a 👩‍👩‍👧 and 👍🏽 🇫🇷 ❤️"),
        ("שלום \u200fעולם", "שלום \u200fעולם"),
        ("กำลัง นี้", "กำลัง นี้"),
        ("<b>&amp; {x} %s \\n</b>", "<b>&amp; {x} %s \\n</b>"),
    ],
)
def test_what_is_mended_and_what_is_left(raw: str | bytes, expected: str) -> None:
    assert txt(raw) == expected
    assert txt(expected) == expected
    if isinstance(raw, str):
        assert caption({}, {"caption": raw}) == expected


def test_without_normalising_only_the_ends_are_trimmed() -> None:
    assert txt("\ufeff a  cafe\u0301\x00\ncat \n", normalize=False) == "a  cafe\u0301\x00\ncat"
    assert txt("e\u0301" * 5, normalize=False, max_chars=10) == "e\u0301" * 5
    with pytest.raises(Bad, match="caption_long"):
        txt("e\u0301" * 5, normalize=False, max_chars=9)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "metadata", "why"),
    [
        ({}, None, "missing_caption: none of txt, json:caption; its members are none"),
        ({"jpg": b"", "json": b""}, {}, "missing_caption: .*members are jpg, json"),
        ({}, {"caption": None}, "missing_caption"),
        ({}, {"caption": 5}, "missing_caption"),
        ({}, {"caption": {"en": "a cat"}}, "missing_caption"),
        ({}, {"caption": []}, "missing_caption"),
        ({}, {"caption": [None, 5, ["a cat"]]}, "missing_caption"),
        ({}, {"Caption": "a cat"}, "missing_caption"),
        ({"txt": b""}, None, "caption_empty: txt"),
        ({"txt": b" \n\t\x00"}, None, "caption_empty: txt"),
        ({"txt": b"\xef\xbb\xbf"}, None, "caption_empty: txt"),
        ({"txt": "\u200b\u200f\u00a0\u2060".encode()}, None, "caption_empty: txt"),
        ({"txt": b" " * 10**6}, None, "caption_empty: txt"),
        ({"txt": b"\xff\xfe caf\xe9"}, None, "caption_not_utf8: txt: .*0xff"),
        ({"txt": "a cat".encode("utf-16")}, None, "caption_not_utf8: txt"),
        ({"txt": b"\xed\xa0\x80 half"}, None, "caption_not_utf8: txt"),
        ({}, parse(b'{"caption": "half \\ud83d"}'), "caption_not_utf8: json:caption"),
        ({"txt": b"a" * 101}, None, r"caption_long: txt: 101 .*data\.caption\.max_chars is 100"),
        ({"txt": b"a" * 10**6}, None, "caption_long: txt: 1,000,000 characters"),
        # The reason of the first that is there.
        ({"txt": b"\xff"}, {"caption": " "}, "caption_not_utf8: txt"),
        ({"txt": b""}, {"caption": "\ud800"}, "caption_empty: txt"),
        ({}, {"caption": ["", "\ud800"]}, "caption_empty: json:caption"),
    ],
)  # fmt: skip
def test_what_is_refused(members: dict[str, bytes], metadata: Any, why: str) -> None:
    with pytest.raises(Bad, match=f"^{why}") as caught:
        caption(members, metadata)
    assert caught.value.reason in BAD


def test_lengths_are_of_what_a_model_is_given() -> None:
    """In characters, after the mending; the limits themselves are allowed."""
    limits = {"min_chars": 3, "max_chars": 5}
    assert txt("  c\x00\x00\x00 t ", **limits) == "c t"
    assert txt("e\u0301" * 3, **limits) == "é" * 3
    assert txt("👍" * 5, **limits) == "👍" * 5
    assert txt("a" + " " * 10**4 + "b c", **limits) == "a b c"
    for raw, why in (
        ("  c\x00\x00\x00 ", r"caption_short: txt: 'c'; data\.caption\.min_chars is 3"),
        ("e\u0301" * 2, "caption_short"),
        ("👍" * 6, "caption_long: txt: 6 characters"),
        ("\u0958" * 3, "caption_long: txt: 6 characters"),  # of which NFC makes two each
    ):
        with pytest.raises(Bad, match=f"^{why}"):
            txt(raw, **limits)
    # Four characters that NFC makes one of: the longest text that still has to be normalised.
    assert txt("\u03b1\u0313\u0300\u0345" * 5, **limits) == "\u1f82" * 5


def test_what_is_surely_too_long_is_not_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    def normalize(form: str, text: str) -> str:
        raise AssertionError(f"{len(text):,} characters are normalised")

    own = SimpleNamespace(normalize=normalize, category=unicodedata.category)
    monkeypatch.setattr(captions, "unicodedata", own)
    for raw in ("é" * 401, "a\u0301" * 500_000):
        with pytest.raises(Bad, match="caption_long"):
            txt(raw, max_chars=100)
    assert txt("a cat") == "a cat", "nor what is ASCII"


def test_no_character_becomes_more_than_that_many() -> None:
    longest = max(len(unicodedata.normalize("NFD", chr(i))) for i in range(sys.maxunicode + 1))
    assert longest == captions.EXPANSION


def test_a_pile_of_marks_is_sorted_in_rows() -> None:
    """Sorting them all at once takes the square of their number: for these, seconds."""
    for pile in ("\u0315\u0300" * 10_000, "\u0315" * 10_000 + "\u0300" * 10_000):
        made = txt("a cat" + pile, max_chars=10**5)
        assert max(map(len, made.removeprefix("a ca").split(captions.JOINER))) <= 1 + captions.MARKS
        assert made.startswith("a cat")
        assert Counter(made)["\u0315"] == 10_000
    row = "a" + "\u0315" * 15 + "\u0300" * 15
    assert txt(row) == unicodedata.normalize("NFC", row), "a row of 30 is text like any other"


# -- which one is taken ------------------------------------------------------------------------


def test_the_first_key_that_has_a_usable_one_is_taken() -> None:
    both = {"txt": b"from the txt"}, {"caption": "from the json"}
    assert caption(*both) == "from the txt"
    assert caption(*both, rules("json:caption", "txt")) == "from the json"
    assert caption({}, both[1]) == "from the json"
    assert caption(both[0], {"caption": None}, rules("json:caption", "txt")) == "from the txt"
    assert caption(both[0], None, rules("json:caption", "txt")) == "from the txt"
    for unusable in (b"", b"\xff\xfe caf\xe9", b"ab", b"a" * 101):
        by = rules(min_chars=3)
        assert caption({"txt": unusable}, both[1], by) == "from the json"
    nested = {"prompt": {"caption": "deep"}}
    assert caption({}, nested, rules("json:prompt.caption")) == "deep"
    assert caption({"txt": b"x"}, {"caption": "y"}, rules("json:top_caption", "txt")) == "x"


def test_weights_draw_nothing_where_one_key_is_left() -> None:
    by = rules("txt", "json:caption", weights=[0.5, 0.5])
    assert caption({"txt": b"x"}, {}, by) == "x"
    assert caption({"txt": b"\xff"}, {"caption": "y"}, by) == "y"
    assert caption({}, {"captions": [None, " ", "z", "a" * 101]}, rules("json:captions")) == "z"
    assert reason({"txt": b"\xff"}, {"caption": ""}, by).startswith("caption_not_utf8")


def shares(members: dict[str, bytes], metadata: Any, by: CaptionRules, draws: int) -> Counter[str]:
    chance = np.random.default_rng(7)
    return Counter(choose(members, metadata, by, chance) for _ in range(draws))


def check(found: Counter[str], expected: dict[str, float]) -> None:
    """Within four standard deviations of the binomial."""
    draws = found.total()
    assert set(found) == set(expected)
    for name, share in expected.items():
        allowed = 4 * (draws * share * (1 - share)) ** 0.5
        assert abs(found[name] - draws * share) <= allowed, (name, found)


def test_keys_are_drawn_in_proportion_among_those_that_are_there() -> None:
    by = rules("txt", "json:a", "json:b", weights=[1, 2, 5])
    metadata = {"a": "A", "b": "B"}
    check(shares({"txt": b"T"}, metadata, by, 3000), {"T": 1 / 8, "A": 2 / 8, "B": 5 / 8})
    check(shares({}, metadata, by, 3000), {"A": 2 / 7, "B": 5 / 7})
    check(shares({"txt": b"T"}, {"b": "B"}, by, 3000), {"T": 1 / 6, "B": 5 / 6})
    check(shares({"txt": b"\xff"}, {"a": "A", "b": ["B"]}, by, 3000), {"A": 2 / 7, "B": 5 / 7})


def test_captions_of_a_list_are_drawn_evenly() -> None:
    metadata = {"captions": ["A", None, "B", "", "C"], "caption": "D"}
    check(shares({}, metadata, rules("json:captions", "json:caption"), 3000),
          {"A": 1 / 3, "B": 1 / 3, "C": 1 / 3})  # fmt: skip
    by = rules("json:captions", "json:caption", weights=[0.4, 0.6])
    check(shares({}, metadata, by, 3000), dict.fromkeys("ABC", 0.4 / 3) | {"D": 0.6})


def test_the_same_chance_draws_the_same() -> None:
    by = rules("txt", "json:captions", weights=[0.3, 0.7])
    members, metadata = {"txt": b"T"}, {"captions": list("ABCD")}
    again = pickle.loads(pickle.dumps(by))

    def drawn(by: CaptionRules, seed: int) -> list[str]:
        chance = np.random.default_rng(seed)
        return [choose(members, metadata, by, chance) for _ in range(30)]

    assert drawn(by, 3) == drawn(again, 3)
    assert drawn(by, 3) != drawn(by, 4)


# -- from the config ---------------------------------------------------------------------------


def test_rules_are_what_the_config_says() -> None:
    assert make_rules(
        keys="txt", weights=None, min_chars=3, max_chars=3, normalize=False
    ) == CaptionRules(("txt",), None, 3, 3, False)
    weighted = rules("txt", "json:a.b", weights=[1, 0.5])
    assert (weighted.keys, weighted.weights) == (("txt", "json:a.b"), (1, 0.5))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"keys": []}, r"data\.caption\.keys=\[\]: expected places"),
        ({"keys": ["txt", "txt"]}, r"data\.caption\.keys=.*each once"),
        ({"keys": ["text"]}, r"data\.caption\.keys: 'text' is no place.*Perhaps 'txt'\?"),
        ({"keys": ["jsn:caption"]}, r"'jsn:caption' is no place.*Perhaps 'json:caption'\?"),
        ({"keys": ["caption"]}, r"'caption' is no place.*Perhaps 'json:caption'\?"),
        ({"keys": ["json:"]}, r"'json:' is no place.*Perhaps 'json:caption'\?"),
        ({"keys": ["txt", 5]}, r"data\.caption\.keys: 5 is no place"),
        ({"weights": [1]}, r"data\.caption\.weights=\[1\]: .*each of the 2 data\.caption\.keys"),
        ({"weights": 0.5}, r"data\.caption\.weights=0\.5"),
        ({"weights": "ab"}, r"data\.caption\.weights='ab'"),
        ({"weights": [1, 0]}, r"data\.caption\.weights=\[1, 0\]: .*a number above 0"),
        ({"weights": [1, -1]}, r"data\.caption\.weights"),
        ({"weights": [1, float("nan")]}, r"data\.caption\.weights"),
        ({"weights": [1, float("inf")]}, r"data\.caption\.weights"),
        ({"weights": [1, True]}, r"data\.caption\.weights"),
        ({"weights": [1, "2"]}, r"data\.caption\.weights"),
        ({"min_chars": 0}, r"data\.caption\.min_chars=0: .*at least 1"),
        ({"min_chars": 2.5}, r"data\.caption\.min_chars=2\.5"),
        ({"min_chars": True}, r"data\.caption\.min_chars=True"),
        ({"max_chars": 2}, r"data\.caption\.max_chars=2: .*at least 3"),
        ({"max_chars": "many"}, r"data\.caption\.max_chars='many'"),
        ({"max_chars": None}, r"data\.caption\.max_chars=None"),
        ({"normalize": "nfc"}, r"data\.caption\.normalize='nfc': expected true or false"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(changes: dict[str, Any], why: str) -> None:
    settings = {
        "keys": ["txt", "json:caption"], "weights": None, "min_chars": 3, "max_chars": 9,
        "normalize": True,
    }  # fmt: skip
    make_rules(**settings)
    with pytest.raises(ValueError, match=why):
        make_rules(**settings | changes)
