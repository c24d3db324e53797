"""Jsons of the web, and the filters that are asked of them."""

from __future__ import annotations

import json
import pickle
import time
from typing import Any

import pytest

from salon.data.metadata import DEEPEST, LONGEST, lookup, make_rules, parse, refused
from salon.data.reasons import BAD, Bad

# -- a json ------------------------------------------------------------------------------------


def test_a_json_as_img2dataset_writes_it() -> None:
    raw = b"""{
    "AESTHETIC_SCORE": NaN, "similarity": -Infinity, "punsafe": 1e999, "pwatermark": 0.25,
    "caption": null, "url": "https://example.com/a", "width": 256, "exif": "{}", "width": 128
}"""
    assert parse(raw) == {
        "AESTHETIC_SCORE": None, "similarity": None, "punsafe": None, "pwatermark": 0.25,
        "caption": None, "url": "https://example.com/a", "width": 128, "exif": "{}",
    }  # fmt: skip
    assert isinstance(parse(raw)["width"], int)
    assert parse(b'\xef\xbb\xbf{"a": [1.5, "\\u00e9"]}') == {"a": [1.5, "é"]}


@pytest.mark.parametrize(
    ("raw", "reason", "why"),
    [
        (b"", "json_invalid", "Expecting value"),
        (b"{'a': 1}", "json_invalid", "double quotes"),
        (b'{"a": 1}}', "json_invalid", "Extra data"),
        (b'{"a": "caf\xe9"}', "json_invalid", "utf-8"),
        ('{"a": 1}'.encode("utf-16"), "json_invalid", "utf-8"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "json_invalid", "4300 digits"),
        (b"[1, 2]", "json_not_object", "a list"),
        (b"null", "json_not_object", "a NoneType"),
        (b"NaN", "json_not_object", "a NoneType"),
        (b'"text"', "json_not_object", "a str"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_json_object_is_bad(raw: bytes, reason: str, why: str) -> None:
    with pytest.raises(Bad, match=why) as caught:
        parse(raw)
    assert caught.value.reason == reason
    assert reason in BAD


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"[": "]]", "b":', b'["\\\\",'])
def test_deep_nesting_is_bad_and_nothing_worse(opening: bytes) -> None:
    for closing in (b"", b"]" * 200_000):
        with pytest.raises(Bad, match="within each other") as caught:
            parse(opening * 200_000 + closing)
        assert caught.value.reason == "json_invalid"


def test_only_what_is_nested_counts_as_deep() -> None:
    for value in ("[{" * 500, r"[\"[\\" * 500, [[]] * 500, [{}] * 500, "[" * 99 + '"' + "{" * 99):
        assert parse(json.dumps({"a": value}).encode()) == {"a": value}
    deepest: Any = []
    for _ in range(DEEPEST - 2):
        deepest = [deepest]
    assert parse(json.dumps({"a": deepest}).encode()) == {"a": deepest}
    with pytest.raises(Bad, match=f"more than {DEEPEST}"):
        parse(json.dumps({"a": [deepest]}).encode())


@pytest.mark.parametrize(
    "text",
    ['"' + '\\"' * 10**5, '"\\', '{"a": "' + "\\\\" * 10**5],
    ids=["quotes", "one", "backslashes"],
)
def test_a_string_without_an_end_takes_no_long_time(text: str) -> None:
    began = time.process_time()
    with pytest.raises(Bad, match="json_invalid"):
        parse(b"[" * (DEEPEST - 1) + b'"[[",' + text.encode())
    assert time.process_time() - began < 1  # its square would be minutes


def test_a_mistake_of_ours_comes_through() -> None:
    with pytest.raises(AttributeError):
        parse(None)  # type: ignore[arg-type]


def test_lookup_takes_a_name_as_it_stands_and_else_a_path() -> None:
    metadata = {"exif": {"width": 3, "a.b": 4}, "exif.width": 5, "n": None, "text": "abc"}
    assert lookup(metadata, "exif.width") == 5
    del metadata["exif.width"]
    assert lookup(metadata, "exif.width") == 3
    absent = ("EXIF", "Exif.width", "exif.w", "exif.width.x", "n", "n.x", "text.0", "exif.a.b", "")
    for field in absent:
        assert lookup(metadata, field) is None, field


# -- the filters -------------------------------------------------------------------------------


def dropped(value: Any, **rule: Any) -> bool:
    """Whether a rule about the field x drops a sample whose x is this."""
    reason = refused({"x": value}, make_rules([{"name": "named", "field": "x", **rule}]))
    assert reason in (None, "named", "named_missing")
    return reason == "named"


@pytest.mark.parametrize(
    ("test", "below", "at", "above"),
    [
        ("min", True, False, False),
        ("above", True, True, False),
        ("max", False, False, True),
        ("below", False, True, True),
    ],
)
def test_thresholds(test: str, below: bool, at: bool, above: bool) -> None:
    for wanted in (5, 5.0):
        for values, drop in (
            ((4.999, 4, "4.999", -1e300, -(10**400)), below),
            ((5.0, 5, "5", "5.0", " +5.0\n", "0.5e1", "50E-1"), at),
            ((5.001, 6, "5.001", "6", 1e300, 10**400), above),
        ):
            for value in values:
                assert dropped(value, **{test: wanted}) == drop, (test, value)


NO_NUMBERS = (
    None, float("nan"), float("inf"), True, False, "", "nan", "inf", "1e999", "1_000", "5,2",
    "0x10", "５", "5.2 points", "high", "9" * 10**6, "9" * 10**5 + "x", [9], {"a": 9},
)  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:20])
def test_what_is_no_number_counts_as_missing(value: Any) -> None:
    for test in ("min", "max", "above", "below"):
        rule = {"name": "score", "field": "x", test: 5}
        assert refused({"x": value}, make_rules([rule])) == "score_missing"
        assert refused({"x": value}, make_rules([rule | {"missing": "drop"}])) == "score_missing"
        assert refused({"x": value}, make_rules([rule | {"missing": "keep"}])) is None
        # Another name of the field is asked in its place.
        aliases = make_rules([rule | {"field": ["x", "y"]}])
        assert refused({"x": value, "y": 5.5}, aliases) == (
            None if test in ("min", "above") else "score"
        )


def test_the_first_name_with_a_value_is_tested() -> None:
    rules = make_rules([{"name": "score", "field": ["AESTHETIC_SCORE", "aesthetic"], "min": 5}])
    assert refused({"aesthetic": 6}, rules) is None
    assert refused({"aesthetic": 4, "AESTHETIC_SCORE": 6}, rules) is None
    assert refused({"aesthetic": 6, "AESTHETIC_SCORE": 4}, rules) == "score"
    assert refused({"aesthetic": 6, "AESTHETIC_SCORE": None}, rules) is None
    assert refused({"Aesthetic": 6, "aesthetic_score": 6}, rules) == "score_missing"
    nested = make_rules([{"name": "width", "field": "exif.width", "max": 9}])
    assert refused({"exif": {"width": 10}}, nested) == "width"
    assert refused({"exif": '{"width": 10}'}, nested) == "width_missing"


def test_any_of_and_none_of() -> None:
    texts = {"en": True, "de": True, "EN": False, "": False, "enx": False, 1: False, 0.5: False}
    for value, named in texts.items():
        assert dropped(value, any_of=["en", "de"]) != named, value
        assert dropped(value, none_of=["en", "de"]) == named, value
    assert dropped("NSFW", none_of="NSFW")
    for value, named in ((1, True), (1.0, True), ("1", True), ("one", False), (True, False)):
        assert dropped(value, any_of=[1, 2.5]) != named, value
    assert not dropped(True, any_of=[True])
    assert dropped(1, any_of=[True])
    assert dropped("True", any_of=[True])
    for value in (None, ["en"], {"en": 1}):
        for test in ("any_of", "none_of"):
            rules = make_rules([{"name": "language", "field": "x", test: ["en"]}])
            assert refused({"x": value}, rules) == "language_missing"


def test_matches_looks_into_the_beginning_only() -> None:
    assert not dropped("see DSC_0001.JPG here", matches=r"(?i)dsc_\d+\.jpe?g")
    assert dropped("a cat", matches=r"\.jpg")
    assert dropped("a cat", matches="^cat")
    assert not dropped("a" * (LONGEST - 1) + "b", matches="b")
    assert dropped("a" * LONGEST + "b", matches="b")
    for value in (None, 5, ["jpg"]):
        rules = make_rules([{"name": "file", "field": "x", "matches": "."}])
        assert refused({"x": value}, rules) == "file_missing"


def test_the_first_rule_that_drops_gives_its_name() -> None:
    rules = make_rules(
        [
            {"name": "a", "field": "a", "min": 1, "missing": "keep"},
            {"name": "b", "field": "b", "min": 1},
            {"name": "c", "field": "c", "none_of": ["x"]},
        ]
    )
    assert refused({}, rules) == "b_missing"
    assert refused({"a": 0, "b": 0}, rules) == "a"
    assert refused({"b": 0, "c": "x"}, rules) == "b"
    assert refused({"b": 1, "c": "x"}, rules) == "c"
    assert refused({"b": 1, "c": "y"}, rules) is None
    assert refused({}, []) is None
    assert make_rules(None) == make_rules([]) == []
    again = pickle.loads(pickle.dumps(make_rules([{"name": "m", "field": "m", "matches": "x"}])))
    assert refused({"m": "y"}, again) == "m", "workers that are spawned get the rules too"


# As the model cards of Stable Diffusion v1-2 and later say it.
STABLE_DIFFUSION = [
    {"name": "aesthetic", "field": ["aesthetic", "AESTHETIC_SCORE"], "above": 5.0},
    {"name": "width", "field": ["original_width", "WIDTH"], "min": 512},
    {"name": "height", "field": ["original_height", "HEIGHT"], "min": 512},
    {"name": "watermark", "field": "pwatermark", "below": 0.5},
]
KEPT = {"aesthetic": 5.1, "original_width": 512, "original_height": 600, "pwatermark": 0.4}
OLD = {"AESTHETIC_SCORE": 6.5, "WIDTH": 1024.0, "HEIGHT": 512.0, "pwatermark": 0.0}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (KEPT, None),
        (OLD, None),
        (OLD | {"width": 256, "height": 256}, None),  # of the copy in the shard
        (KEPT | {"aesthetic": 5.0}, "aesthetic"),
        (OLD | {"AESTHETIC_SCORE": 5.0}, "aesthetic"),
        (OLD | {"AESTHETIC_SCORE": float("nan")}, "aesthetic_missing"),
        (KEPT | {"original_width": 511}, "width"),
        (OLD | {"HEIGHT": 511.0}, "height"),
        (KEPT | {"original_height": None}, "height_missing"),
        (KEPT | {"original_width": None, "WIDTH": 700}, None),
        (KEPT | {"pwatermark": 0.5}, "watermark"),
        (KEPT | {"pwatermark": "0.49"}, None),
        ({"caption": "a cat", "width": 900, "height": 900}, "aesthetic_missing"),
    ],
)
def test_the_filters_of_stable_diffusion(row: dict[str, Any], reason: str | None) -> None:
    assert refused(parse(json.dumps(row).encode()), make_rules(STABLE_DIFFUSION)) == reason


# -- from the config ---------------------------------------------------------------------------

GOOD = {"name": "n", "field": "f", "min": 1}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mim": 2}, r"unknown config key 'data\.filters\[1\]\.mim'.*'data\.filters\[1\]\.min'"),
        ({"anyof": [1]}, r"nearest known one is 'data\.filters\[1\]\.any_of'"),
        ({3: 4}, r"unknown config key 'data\.filters\[1\]\.3'"),
        ({"max": 2}, r"data\.filters\[1\] \(n\) has min and max: expected one of"),
        ({"min": None}, r"data\.filters\[1\] \(n\) has no test: expected one of min, max"),
        ({"min": "5"}, r"data\.filters\[1\]\.min='5': expected a finite number"),
        ({"min": True}, r"data\.filters\[1\]\.min=True: expected a finite number"),
        ({"min": float("nan")}, r"\.min=nan: expected a finite number"),
        ({"min": [1]}, r"\.min=\[1\]: expected a finite number"),
        ({"min": None, "any_of": []}, r"\.any_of=\[\]: expected a list of"),
        ({"min": None, "any_of": ["en", False]}, r"\.any_of=.*all of one kind .*quote them"),
        ({"min": None, "none_of": [1, True]}, r"\.none_of=.*all of one kind"),
        ({"min": None, "none_of": [None]}, r"\.none_of=\[None\]: expected"),
        ({"min": None, "matches": "(a"}, r"\.matches='\(a': expected a regular expression \(.*\)"),
        ({"min": None, "matches": "a{99999999999}"}, r"\.matches=.*expected a regular expression"),
        ({"min": None, "matches": ["a"]}, r"\.matches=.*expected a regular expression"),
        ({"name": None}, r"data\.filters\[1\]\.name=None: expected a word"),
        ({"name": ""}, r"data\.filters\[1\]\.name=''"),
        ({"name": "a b"}, r"data\.filters\[1\]\.name='a b'"),
        ({"name": False}, r"data\.filters\[1\]\.name=False"),
        ({"field": None}, r"data\.filters\[1\]\.field=None: expected the name"),
        ({"field": []}, r"data\.filters\[1\]\.field=\[\]"),
        ({"field": ["a", ""]}, r"data\.filters\[1\]\.field="),
        ({"missing": "use_header"}, r"data\.filters\[1\]\.missing='use_header': expected drop or"),
        ({"name": "first"}, r"data\.filters\[1\]\.name='first': 'first' is already"),
    ],
)
def test_a_rule_that_says_nothing_clear_is_refused_by_key(change: dict[Any, Any], why: str) -> None:
    make_rules([GOOD | {"name": "first"}, GOOD])
    with pytest.raises(ValueError, match=why):
        make_rules([GOOD | {"name": "first"}, GOOD | change])


def test_no_two_rules_are_counted_as_one() -> None:
    for names in (("a", "a_missing"), ("a_missing", "a")):
        with pytest.raises(ValueError, match=r"data\.filters\[1\]\.name=.*'a_missing' is already"):
            make_rules([GOOD | {"name": name} for name in names])


@pytest.mark.parametrize("given", [GOOD, "aesthetic", 5])
def test_filters_are_a_list(given: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.filters=.*expected a list of filters"):
        make_rules(given)
    with pytest.raises(ValueError, match=r"data\.filters\[0\]='aesthetic': expected a filter"):
        make_rules(["aesthetic"])  # type: ignore[list-item]
