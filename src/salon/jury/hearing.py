"""One model before the jury: what it draws for splits and sets of prompts, and all numbers on it.

The same for every family: seed i for prompt i, everything through `sample`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn

from salon import ranks
from salon.jury import features, trial
from salon.jury import protocol as rules
from salon.jury.features import FeatureStore
from salon.jury.protocol import Exhibits, JuryData, exhibits
from salon.jury.record import Copy, Number, Open, Picture
from salon.metrics import lenient, oracle
from salon.metrics.attributes import bias, holds
from salon.metrics.extractor import Extractor
from salon.metrics.images import to_uint8
from salon.models.base import TextToImage
from salon.shapes import prompts
from salon.text.clip import ClipTower

CHUNK = 64  # images that an extractor sees at a time
KEPT = 12  # copies that are shown
Progress = Callable[[int], None]
Numbers = dict[str, Number]


class Sheet(NamedTuple):
    """What was drawn for one split or set."""

    images: Tensor  # (N, 3, H, W) in [-1, 1]
    captions: list[str]
    numbers: Numbers
    hits: list[int] | None = None  # 1 for each prompt that was obeyed


class Hung(NamedTuple):
    """What a split offers, and what its real pictures score."""

    shown: Exhibits
    asked: list[dict[str, Any]] | None  # None: the data set has no exact descriptions
    ceiling: Number | None

    @property
    def captions(self) -> list[str]:
        return [prompt.caption for prompt in self.shown.prompts]


class Hearing:
    def __init__(
        self,
        model: TextToImage,
        *,
        identity: str,  # of the checkpoint: its sha256
        ema: bool,
        tower: ClipTower,
        extractor: Extractor,
        store: FeatureStore,
        batch_size: int,
        reader: nn.Module | None = None,  # a second opinion beside the oracle's
    ) -> None:
        self.model, self.identity, self.ema = model, identity, ema
        self.tower, self.extractor, self.store = tower, extractor, store
        self.reader, self.batch_size = reader, batch_size
        self._hung: dict[tuple[str, str, int], Hung] = {}  # a sweep asks for the same many times

    def draw(self, captions: Sequence[str], progress: Progress = lambda done: None) -> Tensor:
        return rules.draw(self.model, captions, batch_size=self.batch_size, progress=progress)

    # -- splits of the data set ----------------------------------------------------------------

    def split(
        self, data: JuryData, name: str, number: int, train: Tensor | None, progress: Progress
    ) -> tuple[Sheet, list[trial.Copied]]:
        """Of the first `number` of a split; `train` are features of training pictures."""
        hung = self.hang(data, name, number)
        captions = hung.captions
        images = self.draw(captions, progress)
        told, hits = scenes(images, hung)
        if self.reader is not None and hung.asked is not None:
            told["prompt_accuracy_lenient"] = self.lenient(images, hung.asked)
        told |= trial.aligned(images, captions, self.tower)
        real, made = self.real(data, name, hung.shown.real), self.drawn(captions, images)
        told |= trial.distances(real, made)
        found: list[trial.Copied] = []
        if train is not None:
            numbers, found = trial.copying(train, real, made)
            told |= numbers
        return Sheet(images, captions, told, hits), found

    def hang(self, data: Any, split: str, number: int) -> Hung:
        """The first `number` of a split, read and judged once."""
        key = data.identity, split, number
        if key not in self._hung:
            shown = exhibits(data, split, number)
            asked = [prompt.scene for prompt in shown.prompts if prompt.scene is not None]
            if len(asked) < len(shown.prompts):
                self._hung[key] = Hung(shown, None, None)
            else:
                real = oracle.score(shown.real, asked)["all"]
                ceiling = trial.share(round(real * len(asked)), len(asked))
                self._hung[key] = Hung(shown, asked, ceiling)
        return self._hung[key]

    def lenient(self, images: Tensor, asked: Sequence[dict[str, Any]]) -> Number:
        """As `prompt_accuracy`, by the learned reader, which forgives blur and noise."""
        assert self.reader is not None
        readings = lenient.read_all(self.reader, images.to(self.model.device))
        return trial.obeyed(readings, asked)["prompt_accuracy"]

    def real(self, data: Any, split: str, images: Tensor) -> Tensor:
        made_of = features.real_set(data=data.identity, split=split, number=len(images))
        return self._features(made_of, images)

    def drawn(self, captions: Sequence[str], images: Tensor) -> Tensor:
        made_of = features.drawn_set(
            checkpoint_sha256=self.identity, prompts=captions, seeds=range(len(captions)),
            settings=self.model.settings, ema=self.ema,
        )  # fmt: skip
        return self._features(made_of, images)

    def of_images(self, images: Tensor) -> Tensor:
        """Features of pictures that no model drew; not kept."""
        return torch.cat(list(self._extract(images)))

    def _extract(self, images: Tensor) -> Iterator[Tensor]:
        pieces = images.split(CHUNK)

        def make(number: int) -> Tensor:
            return next(features.extract(self.extractor, [to_uint8(pieces[number])]))

        return ranks.spread(make, len(pieces))

    def _features(self, made_of: dict[str, Any], images: Tensor) -> Tensor:
        protocol = features.protocol(self.extractor, made_of, size=images.shape[-1])
        if ranks.place()[1] == 1:
            return self.store.features(protocol, lambda: self._extract(images))
        # The file's lock is one rank's, so nobody may wait for the others under it.
        kept = ranks.agreed(self.store.has(protocol))
        pieces = [] if kept else list(self._extract(images))
        found = self.store.features(protocol, lambda: iter(pieces)) if ranks.first() else None
        return cast(Tensor, ranks.agreed(found))

    # -- sets of prompts of the shapes' world --------------------------------------------------

    def set(self, name: str, number: int, world_seed: int, progress: Progress) -> Sheet:
        """Raises ValueError where there is no such set."""
        asked = prompts.prompts(name, number, world_seed=world_seed)
        captions = [one.caption for one in asked]
        images = self.draw(captions, progress)
        told = trial.obeyed(oracle.read_all(images), [one.asked for one in asked])
        return Sheet(images, captions, told)

    def bias(self, attribute: str, number: int, world_seed: int, progress: Progress) -> Open | None:
        """What is drawn where prompts leave an attribute open, beside what training would have.

        None where no picture shows one well-formed object, as an untrained model's.
        """
        asked = prompts.prompts(f"open_{attribute}", number, world_seed=world_seed)
        images = self.draw([one.caption for one in asked], progress)
        try:
            found = bias(oracle.read_all(images), [one.asked for one in asked], attribute)
        except ValueError:
            return None
        held = found.counted.held
        return Open(
            f"prompts that leave the {attribute} open",
            attribute,
            {word: round(part * held) for word, part in found.shares.items()},
            {word: round(part * number) for word, part in found.trained.items()},
        )


def scenes(images: Tensor, hung: Hung) -> tuple[Numbers, list[int] | None]:
    """What the oracle says, beside the real pictures' score, and which prompts were obeyed; nothing
    where the data set has no exact descriptions."""
    if hung.asked is None or hung.ceiling is None:
        return {}, None
    readings = oracle.read_all(images)
    told = trial.obeyed(readings, hung.asked) | {"prompt_accuracy_real": hung.ceiling}
    pairs = zip(readings, hung.asked, strict=True)
    return told, [int(holds(reading, one)["all"]) for reading, one in pairs]


# -- pictures for a report -----------------------------------------------------------------------


def png(image: Tensor) -> bytes:
    """Of an image (3, H, W) in [-1, 1]."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image[None])[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def wall(sheet: Sheet, number: int) -> tuple[Picture, ...]:
    chosen = zip(sheet.captions[:number], sheet.images[:number], strict=True)
    return tuple(Picture(caption, i, png(image)) for i, (caption, image) in enumerate(chosen))


def pairs(sheet: Sheet, found: Sequence[trial.Copied], train: Tensor) -> tuple[Copy, ...]:
    return tuple(
        Copy(png(sheet.images[made]), png(train[source]), sheet.captions[made], ratio)
        for made, source, ratio in found[:KEPT]
    )
