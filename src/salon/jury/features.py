"""Features kept in files, so that every metric shares one pass of the extractor.

    folder/NAME.npz    features (N, E) float32, and the protocol as JSON

NAME is the hash of the protocol: all that the features depend on. It stands in the file as well and
is compared on reading, so a file that lies under a wrong name is not believed. Files are whole or
not there, and of two processes that need the same features one computes them.

N images, E features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock, FileLock
from torch import Tensor

from salon import files
from salon.metrics.extractor import Extractor

log = logging.getLogger(__name__)

VERSION = 1
Protocol = Mapping[str, Any]  # plain values, as JSON has them
LIBRARIES = ("torch", "open_clip_torch", "timm")


def real_set(*, data: str, split: str, number: int) -> dict[str, Any]:
    """The first `number` images of a split; `data` is the data module's identity."""
    return {"of": "data", "data": data, "split": split, "number": number}


def drawn_set(
    *,
    checkpoint_sha256: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],  # of the sampler
    ema: bool,
) -> dict[str, Any]:
    """What a checkpoint drew, image i for prompt i with seed i."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; expected one for each")
    return {
        "of": "checkpoint",
        "checkpoint_sha256": checkpoint_sha256,
        "prompts_sha256": _sha256(list(prompts)),
        "seeds_sha256": _sha256(list(seeds)),
        "settings": dict(settings),
        "ema": ema,
        "number": len(seeds),
    }


def protocol(extractor: Extractor, images: Mapping[str, Any], *, size: int) -> dict[str, Any]:
    """Of `images`, a `real_set` or `drawn_set`, of `size` pixels a side."""
    return {
        "version": VERSION,
        "extractor": extractor.identity,
        "images": dict(images),
        "size": size,
        "number": images["number"],
        # Without what stands for the device, such as +cpu.
        "libraries": {name: metadata.version(name).partition("+")[0] for name in LIBRARIES},
    }


def extract(extractor: Extractor, images: Iterable[Tensor]) -> Iterator[Tensor]:
    """Batches of uint8 images (n, 3, H, W) to features (n, E) on the CPU, as they are asked for."""
    for batch in images:
        yield extractor(batch.to(extractor.device)).cpu()


class FeatureStore:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, protocol: Protocol) -> Path:
        return self.folder / f"{_sha256(protocol)[:20]}.npz"

    def has(self, protocol: Protocol) -> bool:
        return _read(self.path(protocol), protocol) is not None

    def features(
        self,
        protocol: Protocol,  # with the `number` of images
        make: Callable[[], Iterator[Tensor]],  # batches (n, E); called where there is no file
        *,
        progress: Callable[[int], None] = lambda done: None,  # given the images of each batch
    ) -> Tensor:
        """Features (N, E) in float32, on the CPU: read, or made and kept.

        Raises ValueError where what is made is not of `number` images or not finite, and where the
        folder cannot be written.
        """
        file = self.path(protocol)
        lock = self._locked(file.stem)
        try:
            found = _read(file, protocol)
            if found is None:
                found = _made(make(), protocol, progress)
                _keep(file, found, protocol)
        finally:
            lock.release()
        return found

    def _locked(self, name: str) -> BaseFileLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{name}.lock")
            lock.acquire()
        except OSError as error:
            raise ValueError(
                f"features={str(self.folder)!r} cannot be written ({error}); expected a folder for "
                "files of features: give another one"
            ) from error
        return lock


def _made(batches: Iterator[Tensor], protocol: Protocol, progress: Callable[[int], None]) -> Tensor:
    pieces = []
    for batch in batches:
        pieces.append(batch.detach().to("cpu", torch.float32))
        progress(len(batch))
    made = torch.cat(pieces) if pieces else torch.zeros(0, 0)
    if made.ndim != 2 or len(made) != protocol["number"]:
        raise ValueError(
            f"features are of shape {tuple(made.shape)}, but ({protocol['number']}, E) was "
            "expected: one row for each image of the protocol"
        )
    if not made.isfinite().all():
        raise ValueError("features hold NaN or infinity, which has no distance; they are not kept")
    return made


def _keep(file: Path, features: Tensor, protocol: Protocol) -> None:
    try:
        with files.aside(file) as partial, partial.open("wb") as stream:
            np.savez(stream, features=features.numpy(), protocol=np.array(_json(protocol)))
    except OSError as error:  # a full disk is no reason to lose hours of drawing
        log.warning("features could not be kept in %s: %s", file, error)


def _read(file: Path, protocol: Protocol) -> Tensor | None:
    """None where there is nothing, or nothing that can be trusted, which is said."""
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as contents:
            told, features = str(contents["protocol"]), contents["features"]
    except Exception as error:  # there is no end to what a foreign file makes its reader raise
        log.warning("%s is damaged or no file of features (%s); computing anew", file, error)
        return None
    if told != _json(protocol):
        log.warning("%s holds the features of something else; computing anew", file)
        return None
    sound = features.dtype == np.float32 and features.ndim == 2
    if not sound or len(features) != protocol["number"] or not np.isfinite(features).all():
        log.warning(
            "%s holds %s %s, but float32 (%s, E), all finite, was expected; computing anew",
            file, features.dtype, features.shape, protocol["number"],
        )  # fmt: skip
        return None
    return torch.from_numpy(features)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def _sha256(value: Any) -> str:
    return hashlib.sha256(_json(value).encode()).hexdigest()
