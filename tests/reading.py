"""A reader of shards with plain rules, for tests."""

from __future__ import annotations

from typing import Any

from salon.data import captions
from salon.data.access import Access
from salon.data.image import ImageRules
from salon.data.reader import Reader
from salon.data.tally import Patience
from salon.data.tar import Limits

IMAGE = ImageRules(
    formats=("JPEG", "PNG", "WEBP"), max_pixels=10_000, min_side=1, max_aspect=1e4, animated="first"
)
CAPTION = captions.make_rules(
    keys=["txt"], weights=None, min_chars=1, max_chars=1_000, normalize=True
)
LIMITS = Limits(member=1 << 24, json=1 << 20, header=1 << 16)
ACCESS = Access(schemes=("file",), attempts=1, backoff=0.0, patience=5.0, cache=None)
PATIENCE = Patience(
    max_bad_fraction=0.9, min_seen=1_000, max_consecutive=50, max_lost_shards=9, unreachable="skip"
)
RULES: dict[str, Any] = {
    "crop": "center", "image": IMAGE, "caption": CAPTION, "limits": LIMITS, "access": ACCESS,
}  # fmt: skip
# What a data module takes besides its shards and sizes.
READING: dict[str, Any] = {
    **RULES, "filters": [], "buckets": (), "precomputed": False, "precomputed_dir": "none",
    "errors": PATIENCE, "start_method": None,
}  # fmt: skip


def reader(resolution: int = 8, **changes: Any) -> Reader:
    return Reader(resolution, **{**RULES, "filters": (), **changes})
