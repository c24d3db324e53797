"""What frozen networks made of a data set, in shards of its own: read in place of the pictures.

    FOLDER/making.json                 of which data and which networks; written first
    FOLDER/precomputed.json            of which data and which networks; written last
    FOLDER/SPLIT/SOURCE/00000000.tar   as many as the source has, in its order; in each, by sample:
        KEY.latent     npy, float16 (2, C, h, w): mean and standard deviation of its latent
        KEY.tokens     npy, float16 (sum of L, D): the tokens of its captions, one after the other
        KEY.pooled     npy, float16 (captions, D'): their pooled vectors
        KEY.txt, KEY.json              as they were; the json also says what the rest belongs to

Mean and standard deviation, not one draw, so that training still draws another latent each time it
sees a picture. A sample has the embeddings of every caption that `data.caption` may choose for it,
so the captions are drawn as they would be without.

C latent channels, h, w rows and columns, L tokens, D and D' the text tower's widths.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from salon.data import captions, metadata
from salon.data.access import Access
from salon.data.captions import CaptionRules
from salon.data.reader import Candidate, read_shard
from salon.data.reasons import Bad
from salon.data.tally import Drop
from salon.data.tar import Limits
from salon.types import Latents, Text

LAYOUT = 1  # raised with every change of what a folder holds
INDEX = "precomputed.json"
CLAIM = "making.json"  # of which data and which networks; written first
FIELD = "precomputed"  # in the json of a sample
MEMBERS = frozenset(("latent", "tokens", "pooled", "txt", "json"))

Networks = Mapping[str, str]  # name -> digest of its weights


class Index(NamedTuple):
    """What precomputed.json says."""

    layout: int
    data: str  # identity of the data set
    networks: dict[str, str]
    latent: list[int]  # (2, C, h, w)
    tokens: int  # D
    pooled: int  # D'
    sources: dict[str, list[str]]  # split -> names, in their order


class Made(NamedTuple):
    """One sample, as the training draws it."""

    latent: NDArray[np.float16]  # (2, C, h, w)
    tokens: NDArray[np.float16]  # (L, D)
    pooled: NDArray[np.float16]  # (D')
    caption: str
    key: str


def place(root: Path, data: str, networks: Networks) -> Path:
    """The folder of this data and these networks."""
    told = json.dumps([LAYOUT, data, sorted(networks.items())])
    return root / hashlib.sha256(told.encode()).hexdigest()[:10]


def find(folder: Path, data: str, networks: Networks) -> Index:
    """Raises ValueError where it is missing, unfinished, or of other data or networks."""
    mend = "Make it with the settings of this run: python -m salon.data precompute KEY=VALUE ..."
    try:
        index = Index(**json.loads((folder / INDEX).read_bytes()))
        sides = [index.tokens, index.pooled, *index.latent]
        if not isinstance(index.networks, dict) or not all(type(n) is int for n in sides):
            raise TypeError("networks or sizes of another kind")
    except FileNotFoundError as error:
        raise ValueError(
            f"data.precomputed: {folder} is not there, or not finished; expected what these "
            f"networks made of this data. {mend}"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"data.precomputed: {folder / INDEX} is damaged ({error}). {mend}"
        ) from error
    for name, wanted, found in [
        ("layout", LAYOUT, index.layout),
        ("data", data, index.data),
        *((name, digest, index.networks.get(name)) for name, digest in networks.items()),
    ]:
        if wanted != found:
            raise ValueError(
                f"data.precomputed: {folder} was made of another {name} ({found}) than this run "
                f"has ({wanted}). {mend}"
            )
    return index


# -- one array ---------------------------------------------------------------------------------


def packed(values: Tensor) -> bytes:
    """As npy of float16. Raises ValueError for what has no place in it."""
    half = values.detach().cpu().to(torch.float16)
    if not half.isfinite().all():
        raise ValueError(
            f"precompute: a value of {values.abs().max():.4g} does not fit into float16; these "
            "networks cannot be precomputed. Train with data.precomputed=false"
        )
    buffer = io.BytesIO()
    np.save(buffer, half.numpy().astype("<f2"), allow_pickle=False)
    return buffer.getvalue()


def unpacked(raw: bytes, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """A view of the bytes. Raises Bad unless it is npy of float16, of this shape and finite.

    Not `np.load`: that would allocate what the header says, and its parser of headers raises many
    things. The header has to be the one that `packed` writes.
    """
    header = _header(shape)
    if not raw.startswith(header):
        raise Bad("latent_corrupt", f"no npy of float16 {shape}: it begins with {raw[:80]!r}")
    if len(raw) != len(header) + 2 * math.prod(shape):
        raise Bad("latent_corrupt", f"{len(raw):,} bytes are not those of float16 {shape}")
    values = np.frombuffer(raw, np.float16, offset=len(header)).reshape(shape)
    if not np.isfinite(values).all():  # one would make all weights NaN
        raise Bad("latent_corrupt", "values that are no finite numbers")
    return values


@functools.lru_cache(maxsize=1024)
def _header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return stream.getvalue()


# -- the reader --------------------------------------------------------------------------------


class LatentReader(NamedTuple):
    """Reads what was precomputed as `Reader` reads pictures."""

    about: Index
    caption: CaptionRules
    limits: Limits
    access: Access
    draws: bool  # whether a sample's caption depends on chance

    def candidates(self, shard: str, source: str) -> Iterator[Candidate | Drop]:
        """The samples of a shard in the order in which they stand, and what of them is lost."""
        yield from read_shard(
            shard, source, judge=self._judged, extensions=MEMBERS, limits=self.limits,
            access=self.access,
        )  # fmt: skip

    def _judged(self, found: Candidate) -> Candidate:
        """Raises Bad."""
        members = found.encoded.members
        if missing := MEMBERS - {"txt"} - members.keys():
            raise Bad("latent_missing", f"no .{', .'.join(sorted(missing))}")
        told = metadata.parse(members["json"])
        mine = told.get(FIELD)
        if not isinstance(mine, dict) or mine.get("networks") != self.about.networks:
            raise Bad("latent_mismatch", "its json names other networks than precomputed.json")
        return found._replace(metadata=told)

    def decode(self, candidate: Candidate, chance: np.random.Generator) -> Made | Drop:
        members, told = candidate.encoded.members, candidate.metadata
        assert told is not None
        about = self.about
        try:
            caption = captions.choose(members, told, self.caption, chance)
            which, lengths = _place_of(caption, told[FIELD])
            begin = sum(lengths[:which])
            tokens = unpacked(members["tokens"], (sum(lengths), about.tokens))
            pooled = unpacked(members["pooled"], (len(lengths), about.pooled))
            return Made(
                unpacked(members["latent"], tuple(about.latent)),
                tokens[begin : begin + lengths[which]],
                pooled[which],
                caption,
                candidate.encoded.key,
            )
        except Bad as bad:
            return candidate.drop(bad)

    def collate(self, made: Sequence[Made]) -> Latents:
        moments = torch.from_numpy(np.stack([one.latent for one in made])).float()
        tokens = pad_sequence([_tensor(one.tokens) for one in made], batch_first=True)  # (N, L, D)
        lengths = torch.tensor([len(one.tokens) for one in made])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]  # (N, L)
        pooled = torch.stack([_tensor(one.pooled) for one in made])  # (N, D')
        keys = [one.key for one in made]
        text = Text(tokens, mask, pooled)
        return Latents(moments[:, 0], moments[:, 1], text, [one.caption for one in made], keys)


def _tensor(values: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _place_of(caption: str, told: dict[str, Any]) -> tuple[int, list[int]]:
    """Which of a sample's captions it is, and how many tokens each has. Raises Bad."""
    known, lengths = told.get("captions"), told.get("lengths")
    if (
        not isinstance(known, list) or not isinstance(lengths, list) or len(known) != len(lengths)
        or not all(type(length) is int and 0 < length < 10_000 for length in lengths)
    ):  # fmt: skip
        raise Bad("latent_corrupt", "its json does not say which tokens are of which caption")
    if caption not in known:
        raise Bad("latent_mismatch", f"no embedding of its caption {caption[:80]!r}")
    return known.index(caption), lengths
