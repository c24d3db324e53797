"""The Frechet distance against a closed form, and in the feature spaces that are offered.

N images, E features.
"""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

import toy
from salon.metrics import distances
from salon.metrics.distances import TowerFeatures

E = 5


class Given(nn.Module):
    """Takes the features themselves for images."""

    num_features = E

    def forward(self, features: Tensor) -> Tensor:
        return features


def gaussian(seed: int, *, shift: float, count: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(E, E, generator=generator)
    return torch.randn(count, E, generator=generator) @ mix + shift


def by_hand(one: Tensor, other: Tensor) -> float:
    a, b = one.double().numpy(), other.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(gap + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def measured(metric: FrechetInceptionDistance, real: Tensor, drawn: Tensor) -> float:
    metric.reset()
    for piece in real.split(150):
        metric.update(piece, real=True)
    for piece in drawn.split(150):
        metric.update(piece, real=False)
    return float(metric.compute())


def pictures(seed: int, *, low: int = 0, high: int = 256, count: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_closed_form_on_gaussians() -> None:
    metric = FrechetInceptionDistance(feature=Given())
    one, other = gaussian(0, shift=0), gaussian(1, shift=0.7)
    expected = by_hand(one, other)
    assert expected > 1
    assert measured(metric, one, other) == pytest.approx(expected, rel=1e-4)
    assert measured(metric, other, one) == pytest.approx(expected, rel=1e-4)
    assert measured(metric, one, one) == pytest.approx(0, abs=1e-3)
    # Means alone: d^2 = |mu_r - mu_g|^2.
    assert measured(metric, one, one + 2) == pytest.approx(4 * E, rel=1e-3)


def test_in_the_towers_features() -> None:
    clip = toy.clip()
    name, metric = distances.tower(tower=clip)
    assert name == "fd_clip"
    one, other = pictures(0), pictures(1, low=100)
    features = [clip.encode_images(x.float() / 127.5 - 1) for x in (one, other)]
    assert measured(metric, one, other) == pytest.approx(by_hand(*features), rel=1e-3, abs=1e-5)
    assert measured(metric, one, other) == pytest.approx(measured(metric, other, one), rel=1e-3)
    assert measured(metric, one, one) == pytest.approx(0, abs=1e-4)


def test_the_towers_features_in_full_precision_under_autocast() -> None:
    features, images = TowerFeatures(toy.clip()), pictures(0)
    plain = features(images)
    with torch.autocast("cpu", torch.bfloat16):
        under = features(images)
        distance = distances.tower(tower=toy.clip()).metric
        told = [measured(distance, images, pictures(1, low=100))]
    told.append(measured(distance, images, pictures(1, low=100)))
    assert under.dtype == torch.float32
    assert torch.equal(plain, under)
    assert told[0] == told[1]


def test_the_tower_is_not_copied_or_trained() -> None:
    metric = distances.tower(tower=toy.clip()).metric
    assert not list(metric.parameters())


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "inception.pth"
    with pytest.raises(ValueError, match=r"metrics.weights=.*no such file.*metrics=tower") as error:
        distances.inception(tower=toy.clip(), weights=str(missing))
    assert str(missing) in str(error.value)
    assert distances.URL in str(error.value)


def test_no_network_for_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, *_: Any, **__: Any) -> None:
        asked.append(url)
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ValueError, match=r"name resolution.*metrics.weights=PATH") as error:
        distances.inception(tower=toy.clip(), weights=None)
    assert asked == [distances.URL]
    assert distances.URL in str(error.value)
    assert distances.WEIGHTS in str(error.value)


@pytest.mark.parametrize("contents", [b"", b"not weights at all", {"nothing": torch.zeros(1)}])
def test_a_file_that_holds_something_else(tmp_path: Path, contents: Any) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(contents, bytes):
        file.write_bytes(contents)
    else:
        torch.save(contents, file)
    with pytest.raises(ValueError, match=r"weights.pth' does not hold Inception's weights"):
        distances.inception(tower=toy.clip(), weights=str(file))


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def test_a_hostile_file_is_not_executed(tmp_path: Path) -> None:
    file, proof = tmp_path / "weights.pth", tmp_path / "executed"
    torch.save({"Conv2d_1a_3x3.conv.weight": Hostile(proof)}, file)
    with pytest.raises(ValueError, match="does not hold Inception's weights"):
        distances.inception(tower=toy.clip(), weights=str(file))
    assert not proof.exists()


def test_inception_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the right architecture, with weights that nobody trained."""
    file, value = tmp_path / "weights.pth", 0.03125
    torch.save({}, file)
    with monkeypatch.context() as context:
        context.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        untrained = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))
    # One number stands for each tensor, so that the file is small.
    state = {
        name: torch.full((), value, dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in untrained.state_dict().items()
    }
    torch.save(state, file)

    name, metric = distances.inception(tower=toy.clip(), weights=str(file))
    assert name == "fid"
    assert {float(p.unique()) for p in metric.inception.parameters()} == {value}
    assert not [p for p in metric.parameters() if p.requires_grad]
    metric.update(pictures(0, count=2), real=True)
    assert metric.real_features_sum.shape == (2048,)
    assert metric.real_features_num_samples == 2
