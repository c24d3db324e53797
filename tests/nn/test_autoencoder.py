"""The autoencoder against diffusers at equal weights, at Stable Diffusion's sizes, and more."""

import pytest
import torch
from parity import AUTOENCODER, relative, renamed, roughen
from torch import nn

from salon.nn.autoencoder import AutoencoderKL, Moments, sample

SMALL = {
    "in_channels": 3,
    "latent_channels": 4,
    "channels": (32, 64),
    "blocks": 1,
    "patch": 1,
    "mid_attention": True,
}
BARS = {torch.float32: 1e-5, torch.float64: 1e-12}


def small(dtype: torch.dtype = torch.float32, **changes: object) -> AutoencoderKL:
    torch.manual_seed(0)
    model = AutoencoderKL(**{**SMALL, **changes}).to(dtype).eval()
    roughen(model)
    return model


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_sizes_of_stable_diffusion() -> None:
    with torch.device("meta"):
        model = AutoencoderKL(**{**SMALL, "channels": (128, 256, 512, 512), "blocks": 2})
    assert sum(p.numel() for p in model.parameters()) == 83_653_863
    assert len(list(model.parameters())) == 248
    assert model.factor == 8
    assert {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)} == {32}


CONFIGS = {
    "plain": {},
    "blocks 3, three levels": {"blocks": 3, "channels": (32, 64, 96)},
    "no attention": {"mid_attention": False},
}


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parity_with_diffusers(config: dict, dtype: torch.dtype) -> None:
    import diffusers

    c = {**SMALL, **config}
    theirs = diffusers.AutoencoderKL(
        block_out_channels=c["channels"],
        down_block_types=("DownEncoderBlock2D",) * len(c["channels"]),
        up_block_types=("UpDecoderBlock2D",) * len(c["channels"]),
        layers_per_block=c["blocks"],
        latent_channels=c["latent_channels"],
        mid_block_add_attention=c["mid_attention"],
    )
    model, theirs = small(dtype, **config), theirs.eval().to(dtype)
    theirs.load_state_dict(renamed(model, AUTOENCODER), strict=True)
    x = images(dtype)
    with torch.no_grad():
        moments, expected = model.encode(x), theirs.encode(x).latent_dist
        assert relative(moments.mean, expected.mean) <= BARS[dtype]
        assert relative(moments.logvar, expected.logvar) <= BARS[dtype]
        decoded = theirs.decode(moments.mean).sample
        assert relative(model.decode(moments.mean), decoded) <= BARS[dtype]


@pytest.mark.parametrize(("patch", "levels"), [(1, 2), (2, 2), (4, 1), (2, 3)])
def test_factor_is_what_shapes_say(patch: int, levels: int) -> None:
    model = small(patch=patch, channels=(32,) * levels)
    moments = model.encode(images())
    assert model.factor == patch * 2 ** (levels - 1)
    assert moments.mean.shape == (2, 4, 16 // model.factor, 24 // model.factor)
    assert moments.logvar.shape == moments.mean.shape
    assert model.decode(moments.mean).shape == (2, 3, 16, 24)


def test_patches_go_in_and_come_out_in_place() -> None:
    """With convolutions that copy, decode(encode(x)) is x, each pixel where it was."""
    model = small(patch=2, channels=(32,), latent_channels=12)
    passes = (model.encoder.mid, model.decoder.mid, model.encoder.down[0], model.decoder.up[0])
    for module in passes:
        module.forward = lambda h: h
    for net in (model.encoder, model.decoder):
        net.norm_out = nn.Identity()
    with torch.no_grad():
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            nn.init.zeros_(conv.bias)
            nn.init.dirac_(conv.weight)
    x = images().abs() + 5  # where SiLU is nearly the identity
    with torch.no_grad():
        decoded = model.decode(model.encode(x).mean)
    torch.testing.assert_close(decoded, x, rtol=0, atol=0.1)


def test_a_patch_of_the_image_reaches_only_what_is_near() -> None:
    """Without levels and attention a latent sees a neighbourhood, whatever the patch."""
    model = small(torch.float64, patch=4, channels=(32,), mid_attention=False)
    x = torch.zeros(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    for norm in (m for m in model.modules() if isinstance(m, nn.GroupNorm)):
        norm.forward = lambda h: h
    model.encode(x).mean[0, :, 0, 0].sum().backward()
    reach = x.grad[0].abs().sum(0)
    near = 4 * (1 + 1 + 2 * 3 + 1)  # its patch; conv_in, two convolutions in each of 3, conv_out
    assert reach[:4, :4].count_nonzero() == 16
    assert reach[near:].count_nonzero() == 0
    assert reach[:, near:].count_nonzero() == 0


def test_logvar_is_clamped() -> None:
    model = small()
    with torch.no_grad():
        model.quant_conv.bias[4:] = torch.tensor([1e3, -1e3, 1e3, -1e3])
        model.quant_conv.bias[:4] = 1e3
        moments = model.encode(images())
    assert (moments.logvar[:, 0::2] == 20).all()
    assert (moments.logvar[:, 1::2] == -30).all()
    assert (moments.mean > 900).all()


def test_sample() -> None:
    moments = Moments(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 2.0]).log() * 2)
    torch.testing.assert_close(
        sample(moments, torch.tensor([0.5, 0.25])), torch.tensor([1.5, -1.5])
    )


def test_images_of_a_batch_do_not_meet() -> None:
    model, x = small(torch.float64), images(torch.float64)
    with torch.no_grad():
        together = model.encode(x).mean
        alone = model.encode(x[1:]).mean
        assert relative(alone, together[1:]) <= 1e-12
        assert relative(model.decode(alone), model.decode(together)[1:]) <= 1e-12


def test_an_image_that_does_not_divide() -> None:
    model = small(patch=4)
    with pytest.raises(ValueError, match=r"16 x 20 does not divide .*8; set data.resolution") as e:
        model.encode(torch.zeros(1, 3, 16, 20))
    assert "another autoencoder" in str(e.value)
