"""What several sources need: shares, file names that stay inside, captions from class names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from salon.data.convert.base import BadItem


def shares(**given: float) -> dict[str, float]:
    """`val_share=0.1` as {"val": 0.1}. Raises ValueError where they leave nothing for train."""
    if min(given.values()) < 0 or not sum(given.values()) < 1:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{told}: expected shares from 0 on that leave something for train")
    return {name.removesuffix("_share"): float(value) for name, value in given.items()}


def dealt(name: str, shares: Mapping[str, float]) -> str:
    """The split of a training picture: by a hash of its name, so that it depends on no other."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def require(path: Path, *, setting: str, home: str) -> Path:
    """The path. Raises ValueError, saying where it comes from, where nothing is there."""
    if not path.exists():
        raise ValueError(
            f"{path} is missing. Expected the data set as its authors publish it: download it from "
            f"{home}, unpack it, and set {setting} to its folder"
        )
    return path


def inside(root: Path, name: str) -> Path:
    """A file in `root`, by a name that somebody else wrote. Raises BadItem."""
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()):
            raise BadItem("the file name leaves the folder")
        if not path.is_file():  # a pipe or a device would be read forever
            raise BadItem("no such file")
    except (ValueError, RuntimeError) as error:  # a NUL or half a surrogate; a circle of links
        raise BadItem("no name that a file can have") from error
    return path


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers. Raises ValueError where it is not UTF-8."""
    for number, line in enumerate(text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error})") from error


def told_by(path: Path) -> str:
    """A caption file's text. Raises BadItem: one bad caption is not the end of a data set."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadItem("the caption is not UTF-8") from error


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def phrased(templates: Sequence[str], noun: str, place: Sequence[int]) -> tuple[str, ...]:
    """Every template once, in an order drawn for this place; `{}` is the noun, `{a}` has its a."""
    order = np.random.default_rng(place).permutation(len(templates))
    return tuple(templates[i].format(noun, a=article(noun)) for i in order)
