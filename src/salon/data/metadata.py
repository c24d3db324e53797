"""What a sample's json says, and the filters of `data.filters` that are asked of it.

A filter is looked at before anything is decoded: it costs microseconds, a picture milliseconds.
Only the json is asked here; the size that a picture itself has is checked at its header.

    filters:  # LAION-Aesthetics, as the cards of Stable Diffusion v1-2 and later state it
      - {name: aesthetic, field: [aesthetic, AESTHETIC_SCORE], above: 5.0}
      - {name: width, field: [original_width, WIDTH], min: 512}
      - {name: height, field: [original_height, HEIGHT], min: 512}
      - {name: watermark, field: pwatermark, below: 0.5}
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from salon.data.reasons import Bad

DEEPEST = 64  # lists and objects within each other; Python's own parser gives up near 1,000
LONGEST = 10_000  # characters of a value that a regular expression is shown

COMPARE = {"min": operator.ge, "max": operator.le, "above": operator.gt, "below": operator.lt}
TESTS = (*COMPARE, "any_of", "none_of", "matches")
SETTINGS = ("name", "field", *TESTS, "missing")
MISSING = ("drop", "keep")

# A string is one token even where its end is missing, so that each character is read once.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[+-]?\d++)?", re.ASCII | re.IGNORECASE)
_NAME = re.compile(r"[\w.-]+")


# -- a json ------------------------------------------------------------------------------------


def parse(raw: bytes) -> dict[str, Any]:
    """The names and values of a json; of two values for one name the last is taken.

    NaN, Infinity and what is too large for a float become None: img2dataset writes NaN where a
    column has no value, and a sample is no worse for a column that nobody asks for.

    Raises Bad.
    """
    try:
        text = raw.decode("utf-8-sig")
        if text.count("[") + text.count("{") > DEEPEST and _is_too_deep(text):
            raise Bad("json_invalid", f"more than {DEEPEST} lists and objects within each other")
        told = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except ValueError as error:  # also for UTF-8, and for an integer of thousands of digits
        raise Bad("json_invalid", str(error)) from error
    if not isinstance(told, dict):
        raise Bad("json_not_object", f"it is a {type(told).__name__}")
    return told


def _is_too_deep(text: str) -> bool:
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            if depth > DEEPEST:
                return True
        elif mark in "]}":
            depth -= 1
    return False


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def lookup(metadata: Mapping[str, Any], field: str) -> Any:
    """The value of a field, or None: a name as it stands, or else a path `a.b` into objects."""
    if field in metadata:
        return metadata[field]
    value: Any = metadata
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


# -- the filters -------------------------------------------------------------------------------


class Rule(NamedTuple):
    """One filter. `fields` are other names of the same thing: the first with a value is tested.

    min, max:        a number at the threshold passes
    above, below:    a number at the threshold does not
    any_of, none_of: a text, number or truth value equal to one of these
    matches:         a text in whose first 10,000 characters the regular expression is found

    For a comparison with numbers a text like "5.2" is one, and a truth value is none. A value of a
    kind that the test cannot be asked of counts as missing, like null and NaN.
    """

    name: str
    fields: tuple[str, ...]
    test: str
    wanted: Any  # the threshold, a tuple of values, or a compiled expression
    missing: str  # what becomes of a sample without the field

    @property
    def reasons(self) -> tuple[str, str]:
        """For a sample that fails the test, and for one that has nothing to test."""
        return self.name, f"{self.name}_missing"


def refused(metadata: Mapping[str, Any], rules: Sequence[Rule]) -> str | None:
    """Why the sample is filtered out: the reason of the first rule that drops it, or None."""
    for rule in rules:
        values = (lookup(metadata, field) for field in rule.fields)
        verdict = next(
            (v for v in (_passes(rule, value) for value in values) if v is not None), None
        )
        failed, absent = rule.reasons
        if verdict is False:
            return failed
        if verdict is None and rule.missing == "drop":
            return absent
    return None


def _passes(rule: Rule, value: Any) -> bool | None:
    """None for a value that counts as missing."""
    if rule.test in COMPARE:
        number = _number(value)
        return None if number is None else COMPARE[rule.test](number, rule.wanted)
    if rule.test == "matches":
        text = value if isinstance(value, str) else None
        return None if text is None else bool(rule.wanted.search(text, 0, LONGEST))
    if not isinstance(value, (str, bool, int, float)):
        return None
    return any(_equal(value, one) for one in rule.wanted) == (rule.test == "any_of")


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, (str, bool)):
        return type(value) is type(wanted) and value == wanted
    return _number(value) == wanted


def _number(value: Any) -> int | float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# -- from the config ---------------------------------------------------------------------------


def make_rules(given: Sequence[Mapping[str, Any]] | None) -> list[Rule]:
    """The filters as `data.filters` lists them: name, field, one of TESTS, and perhaps missing.

    `missing` is drop where it is not given, as in the code that trained Stable Diffusion.

    Raises ValueError.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, (Sequence, type(None))):
        raise ValueError(f"data.filters={given!r}: expected a list of filters, or null")
    rules = [_rule(f"data.filters[{i}]", one) for i, one in enumerate(given or ())]
    taken: set[str] = set()
    for i, rule in enumerate(rules):
        if twice := taken.intersection(rule.reasons):
            raise ValueError(
                f"data.filters[{i}].name={rule.name!r}: {min(twice)!r} is already what another "
                "filter is counted under; give each a name of its own"
            )
        taken.update(rule.reasons)
    return rules


def _rule(key: str, given: Mapping[str, Any]) -> Rule:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{key}={given!r}: expected a filter, like {{name: size, field: width, min: 512}}"
        )
    for setting in given:
        if setting not in SETTINGS:
            nearest = difflib.get_close_matches(str(setting), SETTINGS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown config key '{key}.{setting}'; the nearest known one is "
                f"'{key}.{nearest}'. A filter has {', '.join(SETTINGS)}"
            )
    name, missing = given.get("name"), given.get("missing")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{key}.name={name!r}: expected a word under which what it drops is counted, like "
            "'watermark'"
        )
    if missing is not None and missing not in MISSING:
        raise ValueError(
            f"{key}.missing={missing!r}: expected {' or '.join(MISSING)}, for a sample without "
            "the field"
        )
    tests = [test for test in TESTS if given.get(test) is not None]
    if len(tests) != 1:
        found = " and ".join(tests) or "no test"
        raise ValueError(
            f"{key} ({name}) has {found}: expected one of {', '.join(TESTS)}. For two, write two "
            "filters"
        )
    (test,) = tests
    wanted = _wanted(f"{key}.{test}", test, given[test])
    return Rule(name, _fields(f"{key}.field", given.get("field")), test, wanted, missing or "drop")


def _fields(key: str, given: Any) -> tuple[str, ...]:
    fields = tuple(_listed(given))
    if not fields or not all(isinstance(field, str) and field for field in fields):
        raise ValueError(
            f"{key}={given!r}: expected the name of a value in the json, or a list of names of "
            "which the first with a value counts"
        )
    return fields


def _wanted(key: str, test: str, given: Any) -> Any:
    if test in COMPARE:
        if isinstance(given, str) or _number(given) is None:
            raise ValueError(f"{key}={given!r}: expected a finite number, like 0.5 or 512")
        return given
    if test == "matches":
        try:
            return re.compile(given)
        except (re.error, OverflowError, TypeError) as error:
            raise ValueError(f"{key}={given!r}: expected a regular expression ({error})") from error
    values = tuple(_listed(given))
    kinds = {_kind(value) for value in values}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"{key}={given!r}: expected a list of texts, of numbers or of truth values, all of one "
            "kind (YAML reads no, off, yes and on as truth values; quote them)"
        )
    return values


def _kind(value: Any) -> type | None:
    if isinstance(value, (str, bool)):
        return type(value)
    return None if _number(value) is None else float


def _listed(given: Any) -> Iterator[Any]:
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        yield from given
    else:
        yield given
