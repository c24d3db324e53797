"""The U-Net of latent diffusion: Rombach et al. 2022, after Ho et al. 2020.

At the sizes of Stable Diffusion v1 and v2 it has their 686 tensors.

    x -> conv_in ──────────────── skips ─────────────> up[-1] -> norm, SiLU, conv_out
         down[0] (Res, Attn) x blocks, Downsample ──> up[-1] (Res, Attn) x (blocks + 1)
         down[1] (Res, Attn) x blocks, Downsample ──> up[-2] (Res, Attn) x (blocks + 1), Upsample
         ...                                          ...
         down[-1] ──────── mid Res, Attn, Res ──────> up[0]

N images, C channels, H and W rows and columns, L tokens of D features, E features of the time
embedding.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from salon.nn.attention import SpatialTransformer, hide
from salon.nn.blocks import Downsample, ResBlock, TimeEmbedding, Upsample, group_norm, zero_init

TIME_SCALE = 1000  # t = 1 is the end of Stable Diffusion's 1000 timesteps
EPS = 1e-5


class Stage(nn.Module):
    """A level on the way down or up, or the middle: residual blocks, each with its attention."""

    def __init__(
        self,
        res: Iterable[ResBlock],
        attn: Iterable[SpatialTransformer],  # one for each of the first of `res`, or none
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(res)
        self.attn = nn.ModuleList(attn)
        self.resample = resample
        self.remake = False  # activations in the backward pass, in place of keeping them

    def step(self, j: int, h: Tensor, e: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Residual block j, and its attention where it has one."""
        if self.remake and torch.is_grad_enabled():
            made: Tensor = checkpoint(self._step, j, h, e, context, mask, use_reentrant=False)
            return made
        return self._step(j, h, e, context, mask)

    def _step(self, j: int, h: Tensor, e: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.res[j](h, e)
        return self.attn[j](h, context, mask) if j < len(self.attn) else h  # (N, C, H, W)


class Down(Stage):
    def forward(self, h: Tensor, e: Tensor, context: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Every tensor that a skip connection takes; the last is the output."""
        made = []
        for j in range(len(self.res)):
            h = self.step(j, h, e, context, mask)
            made.append(h)
        return made if self.resample is None else [*made, self.resample(h)]


class Mid(Stage):
    def forward(self, h: Tensor, e: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        for j in range(len(self.res)):
            h = self.step(j, h, e, context, mask)
        return h


class Up(Stage):
    def forward(
        self, h: Tensor, skips: list[Tensor], e: Tensor, context: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Each residual block takes the last of the skips away."""
        for j in range(len(self.res)):
            h = self.step(j, torch.cat([h, skips.pop()], dim=1), e, context, mask)
        return h if self.resample is None else self.resample(h)


def _heads(channels: int, heads: int | None, head_dim: int | None) -> int:
    if heads is not None and head_dim is None and channels % heads == 0:
        return heads
    if head_dim is not None and heads is None and channels % head_dim == 0:
        return channels // head_dim
    raise ValueError(
        f"unet: heads={heads}, head_dim={head_dim} at a level of {channels} channels; give one of "
        "the two, null for the other, and one that divides the channels of every attending level"
    )


class UNet(nn.Module):
    """Predicts from a noisy x at time t, given a context, a tensor of x's height and width.

    The output layer starts at zero, and so does every residual branch.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],  # of each level, the finest first
        blocks: int,  # residual blocks of a level on the way down; the way up has one more
        attention: Sequence[bool],  # of each level; the middle always has it
        heads: int | None,  # at every level; or None, and head_dim decides
        head_dim: int | None,  # channels of a head at every level; or None, and heads decides
        context_dim: int,  # D
        depth: int,  # transformer blocks of an attention
        pooled_dim: int | None,  # D' of a vector added to the time embedding; None = without
    ) -> None:
        super().__init__()
        if len(attention) != len(channels):
            raise ValueError(
                f"unet: channels has {len(channels)} levels and attention {len(attention)}; "
                "give one entry of each per level"
            )
        self.factor = 2 ** (len(channels) - 1)  # which height and width must divide by
        width = 4 * channels[0]  # E
        self.time = TimeEmbedding(features=channels[0], width=width)
        # GLIDE (Nichol et al. 2022) and SDXL (Podell et al. 2023) tell the time embedding what the
        # whole caption says; Stable Diffusion v1 does not.
        self.pooled = (
            None
            if pooled_dim is None
            else nn.Sequential(nn.LayerNorm(pooled_dim), nn.Linear(pooled_dim, width))
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)

        def res(inputs: list[int], c: int) -> list[ResBlock]:
            return [ResBlock(c_in, c, width=width, eps=EPS) for c_in in inputs]

        def attn(count: int, c: int) -> list[SpatialTransformer]:
            options = {"context_dim": context_dim, "depth": depth}
            return [
                SpatialTransformer(c, heads=_heads(c, heads, head_dim), **options)
                for _ in range(count)
            ]

        c, skips = channels[0], [channels[0]]
        self.down = nn.ModuleList()
        for i, (c_out, attends) in enumerate(zip(channels, attention, strict=True)):
            inputs = [c] + [c_out] * (blocks - 1)
            last = i == len(channels) - 1
            down = None if last else Downsample(c_out, asymmetric=False)
            self.down.append(Down(res(inputs, c_out), attn(attends * blocks, c_out), down))
            skips += [c_out] * (blocks + (not last))
            c = c_out

        self.mid = Mid(res([c, c], c), attn(1, c))

        self.up = nn.ModuleList()
        for i, (c_out, attends) in reversed(list(enumerate(zip(channels, attention, strict=True)))):
            inputs = [h + skips.pop() for h in [c] + [c_out] * blocks]
            up = Upsample(c_out) if i > 0 else None
            self.up.append(Up(res(inputs, c_out), attn(attends * (blocks + 1), c_out), up))
            c = c_out

        self.norm_out = group_norm(c, EPS)
        self.conv_out = zero_init(nn.Conv2d(c, out_channels, 3, padding=1))

    def blocks(self) -> list[nn.Module]:
        """Residual blocks and attentions: what holds nearly all parameters."""
        return [m for m in self.modules() if isinstance(m, ResBlock | SpatialTransformer)]

    def checkpoint_activations(self) -> None:
        """Trade time for memory: run each block again in the backward pass (Chen et al. 2016)."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.remake = True

    def forward(
        self,
        x: Tensor,  # (N, C_in, H, W)
        t: Tensor,  # (N,) in [0, 1]
        context: Tensor,  # (N, L, D)
        mask: Tensor | None = None,  # (N, L) bool, False where a token is padding
        pooled: Tensor | None = None,  # (N, D')
    ) -> Tensor:
        factor = self.factor
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"unet: {x.shape[2]} x {x.shape[3]} does not divide by {factor}, which "
                f"{len(self.down)} levels need; change the resolution or give channels fewer levels"
            )
        e = self.time(TIME_SCALE * t.float())  # (N, E)
        if self.pooled is not None:
            e = e + self.pooled(pooled)
        e = F.silu(e)
        if mask is not None:
            context = hide(context, mask)

        skips = [self.conv_in(x)]
        for down in self.down:
            skips += down(skips[-1], e, context, mask)
        h = self.mid(skips[-1], e, context, mask)
        for up in self.up:
            h = up(h, skips, e, context, mask)
        return self.conv_out(F.silu(self.norm_out(h)))  # (N, C_out, H, W)
