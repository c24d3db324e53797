"""Gates: what a stage must show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from salon.config import build
from salon.jury.gates import Gate, matching, readable
from salon.models.damsm import Retrieved


class Blurred:
    """An autoencoder that is only as good as it is told."""

    device = torch.device("cpu")

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def reconstruct(self, images: Tensor) -> Tensor:
        return images + self.noise * torch.randn_like(images)


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (1.0, False)])
def test_readable(mini: Callable[..., DictConfig], noise: float, passes: bool) -> None:
    cfg = mini("cvae/tiny", "data.resolution=32")
    data = build(cfg.data, "data")
    gate = readable(module=Blurred(noise), data=data, split="test", images=32, minimum=0.95)
    assert gate is not None
    assert gate.passed is passes
    assert (gate.value == 1.0) is passes


@pytest.mark.parametrize(("found", "passes"), [(0.69, False), (0.71, True)])
def test_matching(mini: Callable[..., DictConfig], found: float, passes: bool) -> None:
    seen: list[tuple[torch.Size, list[str]]] = []

    class Stage:
        def precision(self, images: Tensor, captions: list[str]) -> Retrieved:
            seen.append((images.shape, captions))
            return Retrieved(torch.tensor(found), torch.tensor(0.01))

    cfg = mini("cvae/tiny", "data.resolution=32")
    data = build(cfg.data, "data")
    gate = matching(module=Stage(), data=data, split="test", images=32, minimum=0.7)
    assert gate.passed is passes
    assert gate.value == pytest.approx(found)
    [(shape, captions)] = seen
    assert shape == (32, 3, 32, 32)
    assert captions == [prompt.caption for prompt in data.prompts("test", 32)]


def test_a_failed_gate_says_by_how_much() -> None:
    assert "FAILED by 0.150" in str(Gate("share", 0.8, 0.95))
    assert str(Gate("share", 0.96, 0.95)).startswith("passed")
