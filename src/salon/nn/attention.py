"""Attention over tokens and over pixels.

Multi-head attention: Vaswani et al. 2017. The transformer block and its place between two
projections of an image: latent diffusion, Rombach et al. 2022, appendix E.2.1. GEGLU: Shazeer 2020.

N images, C channels, H and W rows and columns, L tokens, M tokens that are attended to, D features
of one of those, h heads, d features of a head.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from salon.nn.blocks import group_norm, zero_init

EXPANSION = 4  # width of the feed-forward layer over the width of the tokens, Vaswani et al. 2017
EPS = 1e-6  # of the group norm before attention, as in Stable Diffusion


class MultiHeadAttention(nn.Module):
    """Every token of x attends to the tokens of a context, or of x itself where there is none."""

    def __init__(self, features: int, *, context_dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"attention: {features} channels do not divide into {heads} heads")
        self.heads = heads
        self.to_q = nn.Linear(features, features, bias=bias)
        self.to_k = nn.Linear(context_dim, features, bias=bias)
        self.to_v = nn.Linear(context_dim, features, bias=bias)
        self.to_out = nn.Linear(features, features)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """`mask` (N, M) is True where a token of the context may be seen.

        An image that may see none sees all: a softmax over nothing is NaN. `hide` makes what it
        then sees zero.
        """
        context = x if context is None else context
        q = self.to_q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, h, L, d)
        k = self.to_k(context).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, h, M, d)
        v = self.to_v(context).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, h, M, d)
        if mask is not None:
            mask = (mask | ~mask.any(1, keepdim=True))[:, None, None]  # (N, 1, 1, M)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (N, h, L, d)
        return self.to_out(h.transpose(1, 2).flatten(2))  # (N, L, C)


def hide(context: Tensor, mask: Tensor) -> Tensor:
    """Zero the tokens (N, M, D) where the mask (N, M) is False.

    Keys and values without a bias are zero there too, so an image that may see no token attends to
    nothing but zeros and gets zero, however long the padding; and whatever padding holds, be it
    NaN, goes nowhere.
    """
    return context.masked_fill(~mask[:, :, None], 0)


class GEGLU(nn.Module):
    """Linear, gated by the GELU (exact, by the error function) of another linear; linear back."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(features, 2 * EXPANSION * features)
        self.proj_out = nn.Linear(EXPANSION * features, features)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)  # (N, L, 4C) each
        return self.proj_out(value * F.gelu(gate))  # (N, L, C)


class TransformerBlock(nn.Module):
    """LayerNorm and self-attention; LayerNorm and cross-attention; LayerNorm and GEGLU."""

    def __init__(self, features: int, *, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attn1 = MultiHeadAttention(features, context_dim=features, heads=heads, bias=False)
        self.norm2 = nn.LayerNorm(features)
        self.attn2 = MultiHeadAttention(features, context_dim=context_dim, heads=heads, bias=False)
        self.norm3 = nn.LayerNorm(features)
        self.ff = GEGLU(features)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, mask)
        return x + self.ff(self.norm3(x))  # (N, L, C)


class SpatialTransformer(nn.Module):
    """Pixels as tokens through `depth` transformer blocks, added to the image.

    The two projections are linear layers on tokens; the 1x1 convolutions of Stable Diffusion v1 are
    the same function with a weight of two more axes.
    """

    def __init__(self, channels: int, *, context_dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, context_dim=context_dim, heads=heads) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (N, HW, C)
        for block in self.blocks:
            h = block(h, context, mask)
        return x + self.proj_out(h).transpose(1, 2).unflatten(2, x.shape[2:])  # (N, C, H, W)


class SpatialAttention(nn.Module):
    """Self-attention over pixels, added to the image, as amid Stable Diffusion's autoencoder."""

    def __init__(self, channels: int, *, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.attention = MultiHeadAttention(channels, context_dim=channels, heads=heads, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(self.norm(x).flatten(2).transpose(1, 2))  # (N, HW, C)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])  # (N, C, H, W)
