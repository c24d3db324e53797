"""What a W&B run is called: a name and tags from what was chosen and overridden."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

CHOICES = ("experiment", "benchmark", "model", "data", "text")  # that make runs different
LONGEST_NAME, LONGEST_TAG = 120, 64  # W&B refuses longer tags
# What says where a run lies and how it is watched, and not what it is.
ELSEWHERE = ("hydra", "logger", "stages_dir", "resume")
PLACES = ("root", "checkpoint", "precomputed_dir")  # the last words of keys whose values are places


def tags(own: Sequence[str], job: Mapping[str, Any]) -> list[str]:
    """The user's, GROUP:OPTION of what was chosen, and the overrides in short."""
    chosen = {key: job["choices"].get(key) for key in CHOICES}
    found = [*own, *(f"{key}:{option}" for key, option in chosen.items() if option)]
    found += [word for word in short(job) if not word.startswith("seed=")]
    return list(dict.fromkeys(tag[:LONGEST_TAG] for tag in found))


def name(job: Mapping[str, Any]) -> str | None:
    """Of a job among several, as what makes it different from them; None: W&B makes one up."""
    if job["sweep"] is None:
        return None
    given = dict(_pair(word) for word in job["overrides"])
    chosen = [str(given[key]) for key in CHOICES if key in given and key in job["choices"]]
    return " ".join([*chosen, *short(job)])[:LONGEST_NAME] or None


def short(job: Mapping[str, Any]) -> list[str]:
    """LAST_WORD=VALUE of each override that is no choice; more words where two end alike."""
    pairs = [_pair(word) for word in job["overrides"]]
    told = {key: value for key, value in pairs if not _left_out(key, value, job["choices"])}
    ends = Counter(key.rpartition(".")[2] for key in told)
    words = []
    for key in sorted(told, key=lambda key: key != "seed"):  # which stays where a name is cut off
        end = key.rpartition(".")[2]
        words.append(f"{end if ends[end] == 1 else key}={told[key]}")
    return words


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+").partition("=")
    return key, value


def _left_out(key: str, value: str, choices: Mapping[str, Any]) -> bool:
    words = key.split(".")
    return (
        key in choices or words[0] in ELSEWHERE or words[-1] in PLACES
        or "/" in value  # a path
    )  # fmt: skip
