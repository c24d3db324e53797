"""Frechet distances between sets of images, through torchmetrics, in a named feature space.

d^2 = |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2)), Heusel et al. 2017. It is called FID only
in Inception's features; in those of a run's own CLIP image tower it is `fd_clip`, and the two are
never put side by side. Both fall with the number of images, so that number is part of the protocol.

N images, E features.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from salon.text.clip import ClipTower

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"


# What a file that holds no weights, or others, makes its readers raise.
UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError, TypeError,
    AttributeError, ValueError,
)  # fmt: skip


class Distance(NamedTuple):
    name: str
    metric: FrechetInceptionDistance  # takes uint8 (N, 3, H, W)


class TowerFeatures(nn.Module):
    """uint8 images to the CLIP image tower's joint space, in float32 whatever the autocast."""

    def __init__(self, tower: ClipTower) -> None:
        super().__init__()
        self.num_features = tower.image_width  # torchmetrics would otherwise guess from 299 pixels
        # Not a submodule: the tower stays frozen, in place and on its device, and is not copied.
        self._tower = [tower]

    def forward(self, images: Tensor) -> Tensor:
        tower = self._tower[0]
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            return tower.encode_images(images.float() / 127.5 - 1).float()  # (N, E)


def tower(*, tower: ClipTower) -> Distance:
    """In the run's own image tower: no download, and comparable between runs that share it."""
    return Distance("fd_clip", _quiet(FrechetInceptionDistance(feature=TowerFeatures(tower))))


def inception(*, tower: ClipTower, weights: str | None) -> Distance:
    """FID: Inception v3 pool3 features; `weights` is a local file, None downloads it.

    Raises ValueError where the file is missing, is not Inception's, or cannot be downloaded.
    """
    del tower
    with inception_errors("metrics", weights):
        # Read as plain weights first: what builds the network unpickles whatever a file holds.
        inception_weights(weights)
        metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=weights)
    return Distance("fid", _quiet(metric))


def inception_weights(weights: str | None) -> dict[str, Tensor]:
    """Of a local file; None downloads them."""
    if weights is None:
        return torch.hub.load_state_dict_from_url(
            URL, map_location="cpu", check_hash=True, weights_only=True
        )
    state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


@contextlib.contextmanager
def inception_errors(group: str, weights: str | None) -> Iterator[None]:
    """What goes wrong with Inception's weights as ValueError; `group` is that of the config."""
    known = f"{URL} (its sha256 begins with 6726825d)"
    instead = f"{group}=tower to measure in the run's own CLIP image tower"
    if weights is not None and not Path(weights).is_file():
        raise ValueError(
            f"{group}.weights={weights!r}: no such file; expected Inception's weights, {known}. "
            f"Give its path, or {instead}"
        )
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(
            f"{group}.weights={weights!r} does not hold Inception's weights ({str(error)[:200]}); "
            f"expected {known} as it is"
        ) from error
    except OSError as error:  # URLError is one
        raise ValueError(
            f"{group}=inception: the weights could not be downloaded ({error}). Offline: fetch "
            f"{known} elsewhere and say {group}.weights=PATH, or put it into "
            f"{torch.hub.get_dir()}/checkpoints as {WEIGHTS}; or {instead}"
        ) from error


def _quiet(metric: FrechetInceptionDistance) -> FrechetInceptionDistance:
    # The images are gathered before they are measured, so there is nothing to sync.
    metric.sync_on_compute = False
    return metric.eval().requires_grad_(False)
