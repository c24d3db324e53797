"""Feature spaces for distances between sets of images: a name in a config, an `Extractor` here.

  tower        the run's own CLIP image tower; no download
  clip         any CLIP of open_clip's                  Radford et al. 2021
  inception    the 2048 pooled features of FID          Szegedy et al. 2015, Heusel et al. 2017
  dinov2       the CLS token of DINOv2, through timm    Oquab et al. 2023, Stein et al. 2023
  random_conv  a few random convolutions, for tests
  of           a network of one's own, trained on the domain

Two features may be compared where their extractors' identities are equal, and nowhere else: the
rule by which images are resized moves a distance by as much as a better model does.

N images, E features, S pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn

from salon.metrics.distances import (
    UNREADABLE,
    TowerFeatures,
    inception_errors,
    inception_weights,
)
from salon.metrics.extractor import Extractor, Scaled, Vision
from salon.metrics.inception import FEATURES, RESIZES, SIDE, Inception
from salon.text.clip import ClipTower

# Of ImageNet's training set.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tower(*, tower: ClipTower) -> Extractor:
    """The tower stays where and as it is, and is not copied."""
    size = tower.image_size
    return Extractor(
        TowerFeatures(tower), name="tower", resize=f"bicubic-antialias-{size}",
        num_features=tower.image_width, weights=tower,
    )  # fmt: skip


def clip(*, name: str, weights: str) -> Extractor:
    """An open_clip model's image tower; weights by open_clip's tag or from a local file.

    Raises ValueError for a name or tag that open_clip does not have, a file that is not there or
    holds something else, and a download that fails.
    """
    _known("open_clip", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights not in tags and not Path(weights).is_file():
        raise ValueError(
            f"extractor.weights={weights!r}: neither a file nor a tag of {name}; its tags are "
            f"{', '.join(tags)}. Give one of them or a local file: extractor.weights=PATH"
        )
    source = "the file" if weights not in tags else _clip_source(name, weights)
    try:
        model, _, transform = open_clip.create_model_and_transforms(
            name, pretrained=weights, weights_only=True
        )
    except (OSError, *UNREADABLE) as error:
        raise _unusable(name, weights, source, error) from error
    visual, normalize = model.visual, transform.transforms[-1]
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    seeing = Vision(visual, size=size, mean=normalize.mean, std=normalize.std)
    with torch.no_grad():
        (width,) = seeing.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8))[0].shape
    return Extractor(
        seeing, name=f"clip-{name}", resize=f"bicubic-antialias-{size}", num_features=width
    )


def inception(
    *,
    weights: str | None,  # a local file; None downloads it
    resize: str,  # tf1, as TensorFlow 1 and torch-fidelity, or antialias, as torchmetrics >= 1.8
) -> Extractor:
    """The features of FID.

    Raises ValueError where the file is missing, is not Inception's, or cannot be downloaded.
    """
    if resize not in RESIZES:
        raise ValueError(f"extractor.resize={resize!r}; expected one of {', '.join(RESIZES)}")
    with inception_errors("extractor", weights):
        network = Inception(inception_weights(weights), resize=resize)
    return Extractor(network, name="inception", resize=f"{resize}-{SIDE}", num_features=FEATURES)


def dinov2(
    *,
    name: str,  # of timm's
    weights: str | None,  # a local file, timm's or the original; None downloads it
    image_size: int,  # S, to which images are resized: a multiple of the patch
) -> Extractor:
    """The class token after the last norm.

    Raises ValueError for another name, a size that does not fit, a file that is not there or holds
    something else, and a download that fails.
    """
    _known("timm", name, timm.list_models("*dinov2*"))
    config: Any = timm.get_pretrained_cfg(name)
    patch = int(name.partition("patch")[2].partition("_")[0])
    if image_size < patch or image_size % patch:
        raise ValueError(
            f"extractor.image_size={image_size}: {name} takes multiples of {patch}, such as "
            f"{16 * patch}"
        )
    source = f"{config.url} or https://huggingface.co/{config.hf_hub_id}"
    if weights is not None and not Path(weights).is_file():
        raise ValueError(
            f"extractor.weights={weights!r}: no such file; expected {name}'s weights, {source}. "
            "Give the file's path: extractor.weights=PATH"
        )
    try:
        network: Any = timm.create_model(
            name, pretrained=True, num_classes=0, img_size=image_size, global_pool="token",
            pretrained_cfg_overlay={} if weights is None else {"file": weights},
        )  # fmt: skip
    except (OSError, *UNREADABLE) as error:
        raise _unusable(name, weights, source, error) from error
    return Extractor(
        Vision(network, size=image_size, mean=MEAN, std=STD), name=name,
        resize=f"bicubic-antialias-{image_size}", num_features=network.num_features,
    )  # fmt: skip


def random_conv(*, seed: int, features: int) -> Extractor:
    """The same on every machine; knows colors and edges, and nothing of pictures."""
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, features, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for conv in network:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            nn.init.normal_(conv.bias, std=0.1, generator=generator)  # type: ignore[arg-type]
    return Extractor(Scaled(network), name="random_conv", resize="none", num_features=features)


def of(network: nn.Module, name: str) -> Extractor:
    """A network with `num_features` and features(images (N, 3, H, W) in [-1, 1]) -> (N, E).

    It is frozen from now on.
    """
    width: Any = network.num_features
    return Extractor(Scaled(network, "features"), name=name, resize="none", num_features=width)


def shapes(*, reader: nn.Module | None) -> Extractor:
    """The learned reader's. Raises ValueError where none is named."""
    if reader is None:
        raise ValueError(
            "extractor=shapes takes the features of a learned reader, and none is named; train one "
            "(python train.py model=reader/tiny) and say reader=RUN"
        )
    return of(reader, "shapes")


# -- messages ---------------------------------------------------------------------------------


def _known(library: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = ", ".join(get_close_matches(name, names, cutoff=0.0))
        raise ValueError(
            f"extractor.name={name!r}: {library} has no such model; nearest are {near}"
        )


def _clip_source(name: str, tag: str) -> str:
    config: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    hub = config.get("hf_hub", "").rstrip("/")
    places = [config.get("url", ""), f"https://huggingface.co/{hub}" if hub else ""]
    return " or ".join(place for place in places if place)


def _unusable(name: str, weights: str | None, source: str, error: Exception) -> ValueError:
    return ValueError(
        f"extractor.weights={weights!r}: {name}'s weights could not be had from {source} "
        f"({str(error)[:200]}). Offline, fetch them elsewhere and give the file's path: "
        "extractor.weights=PATH"
    )
