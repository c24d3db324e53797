"""What needs no model: how good is a picture that was not drawn at all?

    real pictures           the split's own, for their own prompts: the ceiling
    shuffled captions       the same pictures, each for another's prompt: chance
    nearest caption         for each prompt the training picture whose caption is nearest to it
    mean image              the mean of training pictures, for every prompt

A model that obeys no better than the nearest caption's picture has learnt nothing that a search
would not find; one that is nearer to real pictures than these are to each other copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from salon.jury import trial
from salon.jury.hearing import Hearing, Sheet, scenes, wall
from salon.jury.protocol import Exhibits, JuryData, exhibits
from salon.jury.record import Record, Scalar

CHUNK = 256  # captions that the tower reads at a time
MARKS = {"real pictures": "ceiling", "shuffled captions": "chance"}


def baselines(
    hearing: Hearing, data: JuryData, *, splits: Sequence[str], number: int, train: int,
    protocol: dict[str, Scalar], shown: int,
) -> list[Record]:  # fmt: skip
    """A record of each, on the first `number` of every split and `train` training pictures."""
    learnt = exhibits(data, "train", train)
    features = hearing.real(data, "train", learnt.real)
    heard = {split: _of(hearing, data, split, number, learnt, features) for split in splits}
    records = []
    for label, sheet in heard[splits[0]].items():
        metrics = {split: sheets[label].numbers for split, sheets in heard.items()}
        hits = {split: sheets[label].hits for split, sheets in heard.items()}
        obeyed = {split: found for split, found in hits.items() if found is not None} or None
        records.append(
            Record(
                label, "baseline", None, "", protocol, {}, metrics, MARKS.get(label),
                wall=wall(sheet, shown), hits=obeyed,
            )
        )  # fmt: skip
    return records


def _of(
    hearing: Hearing, data: JuryData, split: str, number: int, learnt: Exhibits, features: Tensor
) -> dict[str, Sheet]:
    """Each by its label; `features` are those of the training pictures `learnt`."""
    hung = hearing.hang(data, split, number)
    real = hearing.real(data, split, hung.shown.real)
    captions, apart = hung.captions, trial.distances(real, features)
    order = torch.arange(len(captions)).roll(1)

    def nearest() -> Tensor:
        return learnt.real[nearest_captions(hearing, captions, captions_of(learnt))]

    made: dict[str, Callable[[], Tensor]] = {
        "real pictures": lambda: hung.shown.real,
        "shuffled captions": lambda: hung.shown.real[order],
        "nearest caption": nearest,
        "mean image": lambda: learnt.real.mean(0, keepdim=True).expand_as(hung.shown.real),
    }
    sheets = {}
    for label, make in made.items():
        images = make()
        told, hits = scenes(images, hung)
        told |= trial.aligned(images, captions, hearing.tower)
        # Real pictures against themselves have no distance, so they stand against training's.
        if label in MARKS:
            told |= apart
        else:
            drawn = hearing.of_images(images)
            told |= trial.distances(real, drawn) | trial.copying(features, real, drawn)[0]
        sheets[label] = Sheet(images, captions, told, hits)
    return sheets


def captions_of(shown: Exhibits) -> list[str]:
    return [prompt.caption for prompt in shown.prompts]


@torch.no_grad()
def nearest_captions(hearing: Hearing, asked: Sequence[str], known: Sequence[str]) -> Tensor:
    """(N,) which of the known captions is nearest to each that is asked, by the tower's cosine."""

    def read(captions: Sequence[str]) -> Tensor:
        pieces = [
            hearing.tower(list(captions[first : first + CHUNK])).pooled.float().cpu()
            for first in range(0, len(captions), CHUNK)
        ]
        return F.normalize(torch.cat(pieces), dim=1)  # (N, E)

    return (read(asked) @ read(known).T).argmax(1)
