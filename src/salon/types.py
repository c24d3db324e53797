"""The words that all rooms speak.

NamedTuples, because Lightning moves them to a device and pins them (a frozen dataclass raises on
the move, a plain one is not pinned).

N images, L tokens, D channels, H and W pixels.
"""

from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What a data module yields."""

    images: Tensor  # (N, 3, H, W) float32 in [-1, 1]
    captions: list[str]  # N
    keys: list[str]  # N, the samples' names in their shards
    trace: Any = None  # of `salon.data`, which takes it off before a model sees the batch


class Latents(NamedTuple):
    """What a data module yields where the frozen networks were run before the training."""

    mean: Tensor  # (N, C, h, w) float32, of each picture's latent
    std: Tensor  # (N, C, h, w) float32
    text: "Text"
    captions: list[str]  # N
    keys: list[str]  # N
    trace: Any = None


class Text(NamedTuple):
    """Captions as a text tower sees them."""

    tokens: Tensor  # (N, L, D) one state per token
    mask: Tensor  # (N, L) bool, True where a token stands, False on padding
    pooled: Tensor  # (N, D') one vector per caption


class Prompt(NamedTuple):
    """A caption to draw, and what the picture must show where that is known exactly."""

    caption: str
    scene: dict[str, Any] | None  # None where the data set has no exact description
    key: str = ""  # of its sample
