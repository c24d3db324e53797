"""What a sample in a shard becomes, up to a picture and its caption.

    open -> tar reader, groups -> needs a picture -> metadata filters     candidates, still encoded
    caption -> header check -> decode -> resize and crop                  samples

Filters come first, since they cost microseconds and decoding costs milliseconds. Shards are
untrusted input: nothing in them is unpickled or run, and no name in them is used as a path.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from salon.data import captions, image, metadata
from salon.data.access import Access
from salon.data.captions import CaptionRules
from salon.data.image import ImageRules
from salon.data.metadata import Rule
from salon.data.openers import opened
from salon.data.reasons import FILTERED, Bad
from salon.data.tally import Drop
from salon.data.tar import Encoded, Limits, Lost, samples
from salon.types import Batch

PICTURES = ("png", "jpg", "jpeg", "webp")
MEMBERS = frozenset((*PICTURES, "txt", "json"))  # whatever else a shard holds is not even read


class Sample(NamedTuple):
    image: NDArray[np.uint8]  # (H, W, 3)
    caption: str
    key: str


class Candidate(NamedTuple):
    """A sample that the filters let through, still encoded."""

    source: str
    shard: str
    encoded: Encoded
    metadata: dict[str, Any] | None  # None where nobody asks for it

    def drop(self, bad: Bad) -> Drop:
        return Drop(self.source, bad.reason, self.shard, self.encoded.key, bad.detail)


class Reads(Protocol):
    """What the stream asks of a reader."""

    def candidates(self, shard: str, source: str) -> Iterator[Candidate | Drop]: ...

    @property
    def draws(self) -> bool: ...

    def decode(self, candidate: Candidate, chance: np.random.Generator) -> Any: ...

    def collate(self, made: Sequence[Any]) -> Any: ...


class Reader(NamedTuple):
    """How samples are read; the same for the training stream and the fixed splits."""

    resolution: int  # the shorter side is resized to it, then a square is cut
    crop: str  # "center" or "random"
    image: ImageRules
    caption: CaptionRules
    filters: Sequence[Rule]
    limits: Limits
    access: Access

    def candidates(self, shard: str, source: str) -> Iterator[Candidate | Drop]:
        """The samples of a shard in the order in which they stand, and what of them is lost."""
        yield from read_shard(
            shard, source, judge=self._judged, extensions=MEMBERS, limits=self.limits,
            access=self.access,
        )  # fmt: skip

    def _judged(self, found: Candidate) -> Candidate | Drop:
        """Raises Bad."""
        members = found.encoded.members
        picture_of(found.encoded)
        if self.asks_metadata and "json" in members:
            found = found._replace(metadata=metadata.parse(members["json"]))
        refused = metadata.refused(found.metadata or {}, self.filters)
        if refused is not None:
            key = found.encoded.key
            return Drop(
                found.source, f"{FILTERED}{refused}", found.shard, key, "as data.filters asks"
            )
        return found

    @property
    def draws(self) -> bool:
        """Whether a sample depends on chance."""
        return self.crop == "random" or self.caption.weights is not None or self.reads_json

    @property
    def reads_json(self) -> bool:
        """Whether captions come from there, where one may be drawn of several."""
        return any(key != captions.TXT for key in self.caption.keys)

    @property
    def asks_metadata(self) -> bool:
        return bool(self.filters) or self.reads_json

    def caption_of(self, candidate: Candidate, chance: np.random.Generator) -> str:
        """Raises Bad."""
        members = candidate.encoded.members
        return captions.choose(members, candidate.metadata, self.caption, chance)

    def decode(
        self,
        candidate: Candidate,
        chance: np.random.Generator,
        size: tuple[int, int] | None = None,  # (width, height); None: the square
    ) -> Sample | Drop:
        try:
            caption = self.caption_of(candidate, chance)
            pixels = image.decode(
                picture_of(candidate.encoded), self.image,
                size=size or (self.resolution, self.resolution), crop=self.crop, chance=chance,
            )  # fmt: skip
        except Bad as bad:
            return candidate.drop(bad)
        return Sample(pixels, caption, candidate.encoded.key)

    def collate(self, made: Sequence[Sample]) -> Batch:
        pixels = torch.from_numpy(np.stack([sample.image for sample in made]))  # (N, H, W, 3)
        images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)
        return Batch(images, [s.caption for s in made], [s.key for s in made])


def read_shard(
    shard: str, source: str, *, judge: Callable[[Candidate], Candidate | Drop],
    extensions: frozenset[str], limits: Limits, access: Access,
) -> Iterator[Candidate | Drop]:  # fmt: skip
    """The samples of a shard in the order in which they stand, and what of them is lost.

    `judge` says of each whether it is a candidate; it may raise Bad.
    """
    stood = 0
    try:
        with opened(shard, access) as stream:
            for found in samples(stream, limits=limits, extensions=extensions):
                if isinstance(found, Lost) and found.key is None:
                    raise Bad(found.reason, found.detail)
                stood += 1
                if isinstance(found, Lost):
                    yield Drop(source, found.reason, shard, found.key, found.detail)
                    continue
                candidate = Candidate(source, shard, found, None)
                try:
                    judged = judge(candidate)
                except Bad as bad:
                    judged = candidate.drop(bad)
                yield judged
    except Bad as bad:  # it cannot be opened, breaks off, or the network failed on the way
        lost = max(1, (listed(shard) or 0) - stood)
        yield Drop(source, bad.reason, shard, None, bad.detail, lost)


def listed(shard: str) -> int | None:
    """How many samples a local shard has, where a list beside it tells, as img2dataset's does."""
    if "://" in shard:
        return None
    path = Path(shard.removesuffix(".tar") + "_stats.json")
    try:
        successes = json.loads(path.read_bytes())["successes"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None  # most shards have no such list, and nobody has vouched for this one either
    return successes if isinstance(successes, int) and successes >= 0 else None


class Known(NamedTuple):
    """What there is to say of a shard without reading it; None: nothing."""

    url: str
    bytes: int | None
    samples: int | None


def known(shard: str) -> Known:
    return Known(shard, None if "://" in shard else Path(shard).stat().st_size, listed(shard))


def picture_of(found: Encoded) -> bytes:
    """Raises Bad where there is none."""
    for name in PICTURES:
        if name in found.members:
            return found.members[name]
    names = ", ".join(f".{name}" for name in found.members) or "nothing that is read"
    raise Bad("missing_image", f"only {names}; expected one of {', '.join(PICTURES)}")
