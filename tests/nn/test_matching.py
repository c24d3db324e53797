"""The image encoders and the joint space of the DAMSM."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import Inception_V3_Weights, inception_v3

from salon.nn.matching import ConvRegions, InceptionRegions, Matcher
from salon.types import Text

GAMMAS = (4.0, 5.0, 10.0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small(**options: Any) -> Matcher:
    image = ConvRegions(channels=[4, 6], patch=2, level=1)
    sizes = {"features": 5, "project_text": True, "gammas": GAMMAS, "width": 8, "pooled_width": 3}
    return Matcher(image=image, **{**sizes, **options})


@pytest.mark.parametrize(("level", "side", "width"), [(0, 8, 4), (1, 4, 6)])
def test_regions_are_the_pixels_of_a_level(level: int, side: int, width: int) -> None:
    encoder = ConvRegions(channels=[4, 6], patch=2, level=level)
    seen = encoder(torch.randn(3, 3, 16, 16))
    assert seen.regions.shape == (3, side**2, width)
    assert seen.whole.shape == (3, 6)
    with pytest.raises(ValueError, match=r"level=2.*at most 1"):
        ConvRegions(channels=[4, 6], patch=2, level=2)


def test_a_region_is_a_place() -> None:
    """What changes in one corner changes that corner's region most."""
    encoder = ConvRegions(channels=[8], patch=2, level=0)
    for block in encoder.res:  # its branch starts at zero
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    black = -torch.ones(1, 3, 32, 32)
    dot = black.clone()
    dot[..., :2, 28:30] = 1  # row 0, column 14 of the 16 x 16 regions
    change = (encoder(dot).regions - encoder(black).regions).norm(dim=2)[0]
    row, column = divmod(int(change.argmax()), 16)
    assert row <= 3  # three convolutions see three pixels far
    assert abs(column - 14) <= 3


def test_the_whole_knows_where() -> None:
    """The same dot at two places far from the border: without coordinates the means are equal."""
    encoder = ConvRegions(channels=[8], patch=2, level=0)
    pictures = -torch.ones(2, 3, 64, 64)
    pictures[0, :, 16:24, 16:24] = pictures[1, :, 40:48, 40:48] = 1
    whole = encoder(pictures).whole
    assert (whole[0] - whole[1]).abs().max() > 1e-3
    with torch.no_grad():
        encoder.conv_in.weight[:, -2:] = 0
    whole = encoder(pictures).whole
    torch.testing.assert_close(whole[0], whole[1])


def test_the_joint_space() -> None:
    matcher = small()
    seen = matcher.look(torch.randn(2, 3, 16, 16))
    assert seen.regions.shape == (2, 16, 5)
    assert seen.whole.shape == (2, 5)
    mask = torch.tensor([[True, False], [True, True]])
    text = matcher.read(Text(torch.randn(2, 2, 8), mask, torch.randn(2, 3)))
    assert text.tokens.shape == (2, 2, 5)
    assert text.pooled.shape == (2, 5)
    assert torch.equal(text.mask, mask)
    assert matcher.reads == (8, 3)
    assert matcher.gammas == GAMMAS


def test_a_trained_tower_is_compared_as_it_is() -> None:
    matcher = small(project_text=False, width=5, pooled_width=5)
    told = Text(torch.randn(1, 2, 5), torch.ones(1, 2, dtype=torch.bool), torch.randn(1, 5))
    text = matcher.read(told)
    assert torch.equal(text.tokens, told.tokens)
    assert torch.equal(text.pooled, told.pooled)
    with pytest.raises(ValueError, match=r"features=5.*8 \(tokens\)"):
        small(project_text=False, pooled_width=5)


def test_published_size_on_top_of_inception() -> None:
    with torch.device("meta"):
        image = InceptionRegions(weights="torchvision")
        matcher = Matcher(
            image=image, features=256, project_text=False, gammas=GAMMAS, width=256,
            pooled_width=256,
        )  # fmt: skip
    inside = sum(p.numel() for p in image.parameters())
    assert sum(p.numel() for p in matcher.parameters()) - inside == 721_152
    assert image.pretrained == [image]
    assert image.source


def test_inception_gives_what_torchvision_computes(tmp_path: Path) -> None:
    net = inception_v3(weights=None, init_weights=False).eval()
    net.load_state_dict({k: _spread(v) for k, v in net.state_dict().items()})
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    ours = InceptionRegions(weights=str(tmp_path / "inception.pth")).eval()
    found: list[Tensor] = []
    net.Mixed_6e.register_forward_hook(lambda *call: found.append(call[2]))
    net.avgpool.register_forward_hook(lambda *call: found.append(call[2]))
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        seen = ours(images)
        net(F.interpolate(images, (299, 299), mode="bilinear"))
    local, last = found
    assert seen.regions.shape == (1, 289, 768)
    torch.testing.assert_close(seen.regions[0, 17 * 3 + 5], local[0, :, 3, 5])
    torch.testing.assert_close(seen.whole, last.flatten(1))
    assert seen.whole.std() > 0


def _spread(value: Tensor) -> Tensor:
    """Batch norms that do something."""
    return value + 0.1 * torch.rand_like(value) if value.ndim == 1 else value


def test_missing_or_wrong_weights_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"weights='no/such/file'.*expected 'torchvision' or"):
        InceptionRegions(weights="no/such/file")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth' could not be loaded"):
        InceptionRegions(weights=str(tmp_path / "other.pth"))

    def offline(self: object, **_: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(Inception_V3_Weights, "get_state_dict", offline)
    with pytest.raises(ValueError, match=r"no network.*Offline: name a file"):
        InceptionRegions(weights="torchvision")
