"""What makes features of images, and under which name features are kept.

N images, E features, S pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from salon.digests import digest


class Extractor(nn.Module):
    """uint8 images (N, 3, H, W), on its device, to float32 features (N, E).

    Always in evaluation mode and full precision, without gradients, whatever surrounds it.
    """

    def __init__(
        self,
        network: nn.Module,  # uint8 images to features
        *,
        name: str,
        resize: str,  # what becomes of images of another size
        num_features: int,  # E
        weights: nn.Module | None = None,  # where they are not the network's own
    ) -> None:
        super().__init__()
        self.name, self.resize, self.num_features = name, resize, num_features
        self.network = network.requires_grad_(False).eval()
        self._weights = [network if weights is None else weights]  # not a submodule, so not moved

    @property
    def identity(self) -> str:
        """What features depend on, whatever the device and the batch."""
        tensors = dict(_tensors(self._weights[0]))
        kinds = {
            str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()
        }
        return f"{self.name} {self.resize} {','.join(sorted(kinds))} {digest(tensors)}"

    @property
    def device(self) -> torch.device:
        return next(tensor.device for _, tensor in _tensors(self._weights[0]))

    def train(self, mode: bool = True) -> Extractor:
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images are {images.dtype} {tuple(images.shape)}, but uint8 (N, 3, H, W) was "
                "expected: map them by salon.metrics.images.to_uint8"
            )
        with _exactly(images.device), _evaluating(self._weights[0]):
            features = self.network(images).float()
        assert features.shape == (len(images), self.num_features), (self.name, features.shape)
        return features


class Vision(nn.Module):
    """Resizes, normalizes, and hands on."""

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(
        self, network: nn.Module, *, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        size = (self.size, self.size)
        x = images.float() / 255
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        return self.network((x - self.mean) / self.std)  # (N, 3, S, S) to (N, E)


class Scaled(nn.Module):
    """Hands images on in [-1, 1] as large as they are, to a method of the network."""

    def __init__(self, network: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, images: Tensor) -> Tensor:
        return getattr(self.network, self.method)(images.float() / 127.5 - 1)


# -- what stands between features and their surroundings ----------------------------------------


@contextlib.contextmanager
def _exactly(device: torch.device) -> Iterator[None]:
    """Neither autocast, nor products of ten bits, which cudnn's convolutions take by themselves."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """For a network that others may train."""
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """With the buffers that no checkpoint holds, such as the mean of a normalization."""
    yield from module.named_parameters()
    yield from module.named_buffers()
