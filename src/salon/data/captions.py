"""Which caption a sample gets: from its txt, from its json, the first that is there or one drawn.

Captions of the web are alt texts, and better ones come from recaptioning (as in "A Picture is
Worth a Thousand Words: Principled Recaptioning Improves Image Generation", Segalis et al. 2023),
so that a picture often has several.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from salon.data.metadata import lookup
from salon.data.reasons import Bad

TXT, JSON = "txt", "json:"
EXPANSION = 4  # characters that one may become under NFD, at most (Unicode's FAQ on normalization)
MARKS = 30  # combining marks in a row, at most (Unicode Standard Annex 15, section 13)
JOINER = "\u034f"  # combining grapheme joiner: what that section puts between longer rows

_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}  # categories: control, format and space


class CaptionRules(NamedTuple):
    """Made by `make_rules`, which checks them."""

    keys: tuple[str, ...]  # where captions are: "txt", or "json:" and a field: a text, or several
    weights: tuple[float, ...] | None  # None: the first key that has one; else one key is drawn
    min_chars: int
    max_chars: int
    normalize: bool  # Unicode NFC, and control characters and runs of white space to one space


def make_rules(
    *,
    keys: str | Sequence[str],
    weights: Sequence[float] | None,
    min_chars: int,
    max_chars: int,
    normalize: bool,
) -> CaptionRules:
    """Raises ValueError that names data.caption and the setting."""
    names = (keys,) if isinstance(keys, str) else tuple(keys)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"data.caption.keys={keys!r}: expected places of captions, each once, like "
            "['txt', 'json:caption']"
        )
    for name in names:
        if name != TXT and not (isinstance(name, str) and name.startswith(JSON) and name != JSON):
            known = (TXT, f"{JSON}{str(name).rpartition(':')[2] or 'caption'}")
            nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"data.caption.keys: {name!r} is no place of a caption; expected 'txt', or 'json:' "
                f"and the name of a value in the json. Perhaps {nearest!r}?"
            )
    for setting, given, least in (("min_chars", min_chars, 1), ("max_chars", max_chars, min_chars)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise ValueError(
                f"data.caption.{setting}={given!r}: expected a whole number of characters, at "
                f"least {least}"
            )
    if not isinstance(normalize, bool):
        raise ValueError(f"data.caption.normalize={normalize!r}: expected true or false")
    return CaptionRules(names, _weights(weights, names), min_chars, max_chars, normalize)


def _weights(given: Sequence[float] | None, keys: tuple[str, ...]) -> tuple[float, ...] | None:
    if given is None:
        return None
    weights = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(weights) != len(keys) or not all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool)
        and 0 < weight < math.inf for weight in weights
    ):  # fmt: skip
        raise ValueError(
            f"data.caption.weights={given!r}: expected null, or for each of the {len(keys)} "
            f"data.caption.keys ({', '.join(keys)}) a number above 0"
        )
    return weights


def choose(
    members: Mapping[str, bytes],
    metadata: Mapping[str, Any] | None,
    rules: CaptionRules,
    chance: np.random.Generator,
) -> str:
    """The sample's caption. `chance` is asked only where there is something to choose.

    Raises Bad, as `usable` does.
    """
    captions = _drawn(usable(members, metadata, rules), rules.weights, chance)
    return captions[0] if len(captions) == 1 else captions[chance.integers(len(captions))]


def usable(
    members: Mapping[str, bytes], metadata: Mapping[str, Any] | None, rules: CaptionRules
) -> list[tuple[int, list[str]]]:
    """What `choose` may choose from: number of the key, and its captions.

    What cannot be used is passed over, as if it were not there. Where nothing can be used, Bad is
    raised with the reason of the first that is there.
    """
    found: list[tuple[int, list[str]]] = []
    first: Bad | None = None
    for number, key in enumerate(rules.keys):
        captions = []
        for text in _found(members, metadata, key):
            try:
                captions.append(_clean(text, key, rules))
            except Bad as bad:
                first = first or bad
        if captions:
            found.append((number, captions))
            if rules.weights is None:
                break
    if not found:
        raise first or Bad(
            "missing_caption",
            f"none of {', '.join(rules.keys)}; its members are {', '.join(members) or 'none'}",
        )
    return found


def _drawn(
    found: list[tuple[int, list[str]]],
    weights: tuple[float, ...] | None,
    chance: np.random.Generator,
) -> list[str]:
    if weights is None or len(found) == 1:
        return found[0][1]
    ends = list(itertools.accumulate(weights[number] for number, _ in found))
    place = bisect.bisect(ends, chance.random() * ends[-1], hi=len(ends) - 1)
    return found[place][1]


def _found(
    members: Mapping[str, bytes], metadata: Mapping[str, Any] | None, key: str
) -> Iterator[bytes | str]:
    if key == TXT:
        if TXT in members:
            yield members[TXT]
        return
    value = lookup(metadata or {}, key.removeprefix(JSON))
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield one


def _clean(found: bytes | str, key: str, rules: CaptionRules) -> str:
    """Raises Bad."""
    try:
        if isinstance(found, bytes):
            text = found.decode()
        else:  # half of a surrogate pair, which json can write, could not be stored or logged
            text = found
            text.encode()
    except UnicodeError as error:
        raise Bad("caption_not_utf8", f"{key}: {error}") from error
    text = text.lstrip("\ufeff")
    text = _SPACE.sub(" ", text).strip() if rules.normalize else text.strip()
    # NFC makes no text shorter than this, so what is too long for it needs no normalising.
    if rules.normalize and len(text) <= EXPANSION * rules.max_chars:
        text = _nfc(text)
    if len(text) > rules.max_chars:
        raise Bad(
            "caption_long",
            f"{key}: {len(text):,} characters; data.caption.max_chars is {rules.max_chars:,}",
        )
    if all(unicodedata.category(character) in _UNSEEN for character in text):
        raise Bad("caption_empty", f"{key}: nothing that can be seen")
    if len(text) < rules.min_chars:
        raise Bad(
            "caption_short",
            f"{key}: {text!r}; data.caption.min_chars is {rules.min_chars:,}",
        )
    return text


def _nfc(text: str) -> str:
    """In time that grows with the length: sorting a long row of marks takes its square."""
    if text.isascii():
        return text
    parts, row = [], 0
    for character in text:
        row = row + 1 if unicodedata.combining(character) else 0
        if row > MARKS:
            parts.append(JOINER)
            row = 1
        parts.append(character)
    return unicodedata.normalize("NFC", "".join(parts))
