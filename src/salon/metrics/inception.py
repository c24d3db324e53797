"""Inception v3 as FID uses it, with its batch normalization folded into the convolutions.

Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", as TensorFlow's
graph of 2015-12-05 has it: average pools leave the padding out, and the last block takes the
maximum where all others take the average. Features are the 2048 averages before the classifier.

Weights come under the names of torch-fidelity's file. Of one block, what reads the input with 1 x 1
kernels is one convolution here; and the average pool follows its 1 x 1 convolution, where the graph
has it before: both are linear, and fewer channels are pooled.

N images, C, O channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
FEATURES = 2048
EPS = 1e-3  # of the batch normalization
RESIZES = ("tf1", "antialias")

Weights = dict[str, Tensor]


class Step(NamedTuple):
    """A convolution, with batch normalization and ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Fork(NamedTuple):
    """Two convolutions of the same input, side by side."""

    one: Step
    other: Step


class Block(NamedTuple):
    """Branches that all read its input, and whose outputs are its output in this order."""

    alone: Step | None
    branches: list[list[Step | Fork]]  # each begins with a kernel of 1 x 1
    pool: Step | None  # after a pool of stride 1; None is a bare maximum of stride 2


def _a(pooled: int) -> Block:
    double = [
        Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
        Step("branch3x3dbl_3", 96, (3, 3)),
    ]  # fmt: skip
    five = [Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5))]
    return Block(None, [[Step("branch1x1", 64)], [*five], [*double]], Step("branch_pool", pooled))


def _c(narrow: int) -> Block:
    seven = [
        Step("branch7x7_1", narrow), Step("branch7x7_2", narrow, (1, 7)),
        Step("branch7x7_3", 192, (7, 1)),
    ]  # fmt: skip
    double = [
        Step("branch7x7dbl_1", narrow), Step("branch7x7dbl_2", narrow, (7, 1)),
        Step("branch7x7dbl_3", narrow, (1, 7)), Step("branch7x7dbl_4", narrow, (7, 1)),
        Step("branch7x7dbl_5", 192, (1, 7)),
    ]  # fmt: skip
    return Block(None, [[Step("branch1x1", 192)], [*seven], [*double]], Step("branch_pool", 192))


_B = Block(
    Step("branch3x3", 384, (3, 3), 2),
    [
        [
            Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
            Step("branch3x3dbl_3", 96, (3, 3), 2),
        ]
    ],
    None,
)  # fmt: skip
_D = Block(
    None,
    [
        [Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2)],
        [
            Step("branch7x7x3_1", 192), Step("branch7x7x3_2", 192, (1, 7)),
            Step("branch7x7x3_3", 192, (7, 1)), Step("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ],
    None,
)  # fmt: skip
_E = Block(
    None,
    [
        [Step("branch1x1", 320)],
        [
            Step("branch3x3_1", 384),
            Fork(Step("branch3x3_2a", 384, (1, 3)), Step("branch3x3_2b", 384, (3, 1))),
        ],
        [
            Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3)),
            Fork(Step("branch3x3dbl_3a", 384, (1, 3)), Step("branch3x3dbl_3b", 384, (3, 1))),
        ],
    ],
    Step("branch_pool", 192),
)  # fmt: skip


class Inception(nn.Module):
    """uint8 images (N, 3, H, W) to features (N, 2048).

    `resize`: "tf1" is bilinear without half-pixel centers, as TensorFlow 1 and torch-fidelity have
    it, "antialias" is that of torchmetrics since 1.8. Raises ValueError for another one, and for
    weights that are not Inception's.
    """

    def __init__(self, weights: Weights, *, resize: str) -> None:
        super().__init__()
        if resize not in RESIZES:
            raise ValueError(f"resize={resize!r}; expected one of {', '.join(RESIZES)}")
        self.antialias = resize == "antialias"
        left = dict(weights)
        self.stem = nn.Sequential(
            Conv(left, "", 3, Step("Conv2d_1a_3x3", 32, (3, 3), 2)),
            Conv(left, "", 32, Step("Conv2d_2a_3x3", 32, (3, 3)), padded=False),
            Conv(left, "", 32, Step("Conv2d_2b_3x3", 64, (3, 3))),
            nn.MaxPool2d(3, stride=2),
            Conv(left, "", 64, Step("Conv2d_3b_1x1", 80)),
            Conv(left, "", 80, Step("Conv2d_4a_3x3", 192, (3, 3)), padded=False),
            nn.MaxPool2d(3, stride=2),
        )
        self.blocks = nn.Sequential(
            Mixed(left, "Mixed_5b.", 192, _a(32)),
            Mixed(left, "Mixed_5c.", 256, _a(64)),
            Mixed(left, "Mixed_5d.", 288, _a(64)),
            Mixed(left, "Mixed_6a.", 288, _B),
            Mixed(left, "Mixed_6b.", 768, _c(128)),
            Mixed(left, "Mixed_6c.", 768, _c(160)),
            Mixed(left, "Mixed_6d.", 768, _c(160)),
            Mixed(left, "Mixed_6e.", 768, _c(192)),
            Mixed(left, "Mixed_7a.", 768, _D),
            Mixed(left, "Mixed_7b.", 1280, _E),
            Mixed(left, "Mixed_7c.", 2048, _E, maximum=True),
        )
        # The classifier is not used, nor are the counts of what was trained on.
        unread = [n for n in left if not n.startswith("fc.") and "num_batches" not in n]
        if unread:
            raise ValueError(f"{len(unread)} weights too many, such as {unread[0]!r}")
        self.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU

    def forward(self, images: Tensor) -> Tensor:
        x = (resized(images.float(), antialias=self.antialias) - 128) / 128  # (N, 3, 299, 299)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.blocks(self.stem(x)).mean((2, 3))  # (N, 2048)


def resized(images: Tensor, *, antialias: bool) -> Tensor:
    """Float images (N, C, H, W) to 299 x 299, by either rule."""
    if antialias:
        return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    for axis in (3, 2):
        images = _like_tf1(images, axis)
    return images


def _like_tf1(images: Tensor, axis: int) -> Tensor:
    """Pixel i is taken at i s, s the ratio of sizes; half-pixel centers say (i + 1/2) s - 1/2."""
    size = images.shape[axis]
    at = torch.arange(SIDE, device=images.device, dtype=torch.float32) * (size / SIDE)
    low = at.long()
    share = at - low
    if axis == 2:
        share = share[:, None]
    lower = images.index_select(axis, low)
    upper = images.index_select(axis, (low + 1).clamp(max=size - 1))
    return lower.lerp_(upper, share)


class Conv(nn.Module):
    """A convolution with its normalization in it, and ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, left: Weights, prefix: str, inward: int, step: Step, *, padded: bool = True
    ) -> None:
        super().__init__()
        weight, bias = _folded(left, prefix, inward, step)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride = step.stride
        # A stride of 2 is taken without padding everywhere.
        half = tuple(k // 2 for k in step.kernel)
        self.padding = half if padded and step.stride == 1 else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding).relu_()


class Forked(nn.Module):
    def __init__(self, left: Weights, prefix: str, inward: int, fork: Fork) -> None:
        super().__init__()
        self.both = nn.ModuleList(Conv(left, prefix, inward, step) for step in fork)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.both], 1)


class Mixed(nn.Module):
    """One block: (N, C, H, W) to (N, O, H, W), or half of H and W."""

    weight: Tensor  # of all its 1 x 1 convolutions of the input
    bias: Tensor

    def __init__(
        self,
        left: Weights,
        prefix: str,
        inward: int,
        block: Block,
        *,
        maximum: bool = False,  # pooled, in place of the average
    ) -> None:
        super().__init__()
        heads = [branch[0] for branch in block.branches]
        self.averaged = block.pool is not None and not maximum
        self.alone = Conv(left, prefix, inward, block.alone) if block.alone else None
        self.pooled = Conv(left, prefix, inward, block.pool) if block.pool and maximum else None
        if block.pool is not None and not maximum:
            heads.append(block.pool)
        steps = [head for head in heads if isinstance(head, Step)]
        folded = [_folded(left, prefix, inward, step) for step in steps]
        self.widths = [step.channels for step in steps]
        self.register_buffer("weight", torch.cat([weight for weight, _ in folded]))
        self.register_buffer("bias", torch.cat([bias for _, bias in folded]))
        self.tails = nn.ModuleList(
            _chain(left, prefix, width, branch[1:])
            for width, branch in zip(self.widths, block.branches, strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = F.conv2d(x, self.weight, self.bias).split(self.widths, 1)
        made = [] if self.alone is None else [self.alone(x)]
        made += [tail(head.relu()) for tail, head in zip(self.tails, heads, strict=False)]
        if self.averaged:
            made.append(F.avg_pool2d(heads[-1], 3, 1, 1, count_include_pad=False).relu_())
        elif self.pooled is not None:
            made.append(self.pooled(F.max_pool2d(x, 3, 1, 1)))
        else:
            made.append(F.max_pool2d(x, 3, 2))
        return torch.cat(made, 1)


def _chain(left: Weights, prefix: str, inward: int, steps: list[Step | Fork]) -> nn.Sequential:
    made: list[nn.Module] = []
    for step in steps:
        if isinstance(step, Fork):
            made.append(Forked(left, prefix, inward, step))
        else:
            made.append(Conv(left, prefix, inward, step))
            inward = step.channels
    return nn.Sequential(*made)


def _folded(left: Weights, prefix: str, inward: int, step: Step) -> tuple[Tensor, Tensor]:
    """A kernel (O, C, h, w) and bias (O); what is read is taken out of `left`."""
    name, wide = prefix + step.name, (step.channels,)
    shapes = {"conv.weight": (step.channels, inward, *step.kernel)} | {
        f"bn.{part}": wide for part in ("weight", "bias", "running_mean", "running_var")
    }
    read = []
    for part, shape in shapes.items():
        found = left.pop(f"{name}.{part}", None)
        if not isinstance(found, Tensor) or found.shape != shape:
            told = tuple(found.shape) if isinstance(found, Tensor) else "missing"
            raise ValueError(f"{name}.{part} is {told}; expected {shape}")
        read.append(found.double())  # so that folding rounds once
    kernel, scale, shift, mean, variance = read
    scale = scale / (variance + EPS).sqrt()
    return (kernel * scale.view(-1, 1, 1, 1)).float(), (shift - mean * scale).float()
