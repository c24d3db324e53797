"""What a learned reader must show to be a second opinion, and how far two readers agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from salon.jury.gates import Gate
from salon.jury.protocol import JuryData, exhibits
from salon.metrics import lenient, oracle
from salon.metrics.attributes import holds


def legible(
    *, module: Any, data: JuryData, splits: Sequence[str], images: int, minimum: float
) -> Gate | None:
    """The share of real pictures that a reader reads wholly right, of the split that it reads
    worst. None where the data set has no exact descriptions."""
    shares = []
    for split in splits:
        shown = exhibits(data, split if data.has(split) else "val", images)
        asked = [prompt.scene for prompt in shown.prompts if prompt.scene is not None]
        if len(asked) < len(shown.prompts):
            return None
        readings = lenient.read_all(module, shown.real.to(module.device))
        shares.append(oracle.judge(readings, asked)["all"])
    return Gate("share of real pictures read right", min(shares), minimum)


def agree(
    reader: Callable[[Tensor], Tensor], images: Tensor, asked: Sequence[dict[str, Any]]
) -> lenient.Agreement:
    """Of the analytic oracle and a reader, on images (N, 3, H, W) in [-1, 1]."""
    first, second = oracle.read_all(images), lenient.read_all(reader, images)
    right = [
        (holds(a, one)["all"], holds(b, one)["all"])
        for a, b, one in zip(first, second, asked, strict=True)
    ]
    return lenient.agreement(first, second, right)
