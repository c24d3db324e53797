"""The U-Net against diffusers' at equal weights, at Stable Diffusion's sizes, and by its promises.

Bars of parity: 1e-5 in float32 and 1e-12 in float64. An epsilon of 1e-6 in place of 1e-5, or the
tanh GELU, moves the output by less than 1e-4.
"""

import pytest
import torch
from parity import UNET, relative, renamed, roughen
from torch import Tensor, nn

from salon.nn.blocks import sinusoids
from salon.nn.unet import UNet

SD = {
    "in_channels": 4,
    "out_channels": 4,
    "channels": (320, 640, 1280, 1280),
    "blocks": 2,
    "attention": (True, True, True, False),
    "depth": 1,
    "pooled_dim": None,
}
SMALL = {
    "in_channels": 4,
    "out_channels": 3,
    "channels": (32, 64),
    "blocks": 1,
    "attention": (True, False),
    "heads": 4,
    "head_dim": None,
    "context_dim": 16,
    "depth": 1,
    "pooled_dim": None,
}
BARS = {torch.float32: 1e-5, torch.float64: 1e-12}


def small(dtype: torch.dtype = torch.float32, **changes: object) -> UNet:
    torch.manual_seed(0)
    model = UNet(**{**SMALL, **changes}).to(dtype).eval()
    roughen(model)
    return model


def inputs(
    n: int = 3, dtype: torch.dtype = torch.float32, length: int = 7, dim: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, 8, 12, generator=g, dtype=torch.float64).to(dtype)
    context = torch.randn(n, length, dim, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.rand(n, generator=g), context


def some(n: int = 3, length: int = 7) -> Tensor:
    return torch.arange(length)[None] < torch.tensor([length, 2, 5])[:n, None]


@pytest.mark.parametrize(
    ("heads", "context_dim", "count"),
    [
        ({"heads": 8, "head_dim": None}, 768, 859_520_964),
        ({"heads": None, "head_dim": 64}, 1024, 865_910_724),
    ],
    ids=["sd1", "sd2"],
)
def test_sizes_of_stable_diffusion(heads: dict, context_dim: int, count: int) -> None:
    with torch.device("meta"):
        model = UNet(**SD, **heads, context_dim=context_dim)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(list(model.parameters())) == 686
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {32}


CONFIGS = {
    "plain": {},
    "depth 2": {"depth": 2, "attention": (False, True)},
    "blocks 3, three levels": {
        "blocks": 3,
        "channels": (32, 64, 96),
        "attention": (True, True, False),
    },
    "head_dim": {"heads": None, "head_dim": 8, "attention": (True, True)},
}


def diffusers_unet(config: dict) -> nn.Module:
    from diffusers import UNet2DConditionModel

    c, levels = {**SMALL, **config}, len({**SMALL, **config}["channels"])
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in c["attention"]]
    up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(c["attention"])]
    return UNet2DConditionModel(
        in_channels=c["in_channels"],
        out_channels=c["out_channels"],
        block_out_channels=c["channels"],
        layers_per_block=c["blocks"],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        # The name is historic: it counts heads.
        attention_head_dim=[c["heads"] or width // c["head_dim"] for width in c["channels"]],
        cross_attention_dim=c["context_dim"],
        transformer_layers_per_block=[c["depth"]] * levels,
        use_linear_projection=True,
    ).eval()


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "masked"])
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parity_with_diffusers(config: dict, dtype: torch.dtype, masked: bool) -> None:
    model, theirs = small(dtype, **config), diffusers_unet(config).to(dtype)
    theirs.load_state_dict(renamed(model, UNET), strict=True)
    x, t, context = inputs(dtype=dtype)
    mask = some() if masked else None
    with torch.no_grad():
        expected = theirs(x, 1000 * t, context, encoder_attention_mask=mask).sample
        assert relative(model(x, t, context, mask), expected) <= BARS[dtype]


def test_sinusoids() -> None:
    waves = sinusoids(torch.tensor([0.0, 500.0]), 4)
    angles = torch.tensor([500.0, 5.0])  # at the frequencies 1 and 10000^(-1/2)
    torch.testing.assert_close(waves[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(waves[1], torch.cat([angles.cos(), angles.sin()]))


@pytest.mark.parametrize("attention", [(True, True), (False, False)])
def test_starts_at_zero_yet_learns(attention: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    model = UNet(**{**SMALL, "attention": attention})
    x, t, context = inputs()
    output = model(x, t, context)
    assert output.shape == (3, 3, 8, 12)
    assert output.count_nonzero() == 0
    output.sum().backward()
    assert model.conv_out.weight.grad.abs().sum() > 0


def test_every_parameter_has_a_gradient() -> None:
    model = small(attention=(True, True))
    model(*inputs(), some()).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_masked_tokens_change_nothing() -> None:
    model, mask = small(), some()
    x, t, context = inputs()
    with torch.no_grad():
        expected = model(x, t, context, mask)
        noisy = torch.where(mask[..., None], context, torch.randn(context.shape))
        assert torch.equal(model(x, t, noisy, mask), expected)
        broken = context.masked_fill(~mask[..., None], float("nan"))
        assert torch.equal(model(x, t, broken, mask), expected)
        seen = model(x, t, context)
    assert relative(seen[:1], expected[:1]) <= 1e-6  # its mask is all True
    assert relative(seen[1:], expected[1:]) > 1e-3


def test_longer_padding_changes_nothing() -> None:
    model = small(torch.float64)
    x, t, context = inputs(dtype=torch.float64)
    mask = some()
    mask[2] = False
    longer = torch.cat([context, torch.ones(3, 5, 16, dtype=torch.float64)], dim=1)
    wider = torch.cat([mask, torch.zeros(3, 5, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        assert relative(model(x, t, longer, wider), model(x, t, context, mask)) <= 1e-12


def test_an_image_without_a_token_is_finite_and_is_that_of_a_zero_context() -> None:
    model = small(torch.float64)
    x, t, context = inputs(dtype=torch.float64)
    context.requires_grad_()
    output = model(x, t, context, torch.zeros(3, 7, dtype=torch.bool))
    output.square().sum().backward()
    assert context.grad.count_nonzero() == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert relative(output, model(x, t, torch.zeros_like(context))) <= 1e-12


def test_images_of_a_batch_do_not_meet() -> None:
    model = small(torch.float64, attention=(True, True))
    x, t, context = inputs(dtype=torch.float64)
    with torch.no_grad():
        together = model(x, t, context, some())
        for i in range(3):
            one = slice(i, i + 1)
            alone = model(x[one], t[one], context[one], some()[one])
            assert relative(alone, together[one]) <= 1e-12


def test_channels_last_is_the_same_function() -> None:
    model = small(torch.float64, attention=(True, True))
    x, t, context = inputs(dtype=torch.float64)
    with torch.no_grad():
        expected = model(x, t, context)
        model.to(memory_format=torch.channels_last)
        got = model(x.to(memory_format=torch.channels_last), t, context)
    assert relative(got, expected) <= 1e-12


def test_size_must_divide() -> None:
    model = small(channels=(32, 32, 32), attention=(False, False, False))
    _, t, context = inputs()
    with pytest.raises(ValueError, match=r"8 x 10 does not divide by 4.* 3 levels"):
        model(torch.zeros(3, 4, 8, 10), t, context)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 4, "head_dim": 8}, r"heads=4, head_dim=8 .*give one"),
        ({"heads": None, "head_dim": None}, r"heads=None, head_dim=None .*give one"),
        ({"heads": 5}, r"heads=5, head_dim=None at a level of 32 channels"),
        ({"heads": None, "head_dim": 24}, r"head_dim=24 at a level of 32 channels"),
        ({"attention": (True,)}, r"2 levels and attention 1"),
        ({"channels": (33, 64), "attention": (False, False)}, r"33 features are odd"),
    ],
)
def test_impossible_configs(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **changes})


def test_a_level_that_does_not_attend_need_not_divide_into_heads() -> None:
    UNet(**{**SMALL, "channels": (36, 64), "attention": (False, False), "heads": 8})


def test_the_pooled_text_reaches_every_pixel_through_the_time() -> None:
    model = small(pooled_dim=5)
    x, t, context = inputs(2)
    pooled = torch.randn(2, 5, generator=torch.Generator().manual_seed(2))
    changed = pooled + torch.tensor([[0.0], [1.0]]) * torch.arange(5)
    out, other = model(x, t, context, pooled=pooled), model(x, t, context, pooled=changed)
    assert torch.equal(out[0], other[0])
    assert (out[1] != other[1]).all()
