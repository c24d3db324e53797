"""What latent diffusion promises beyond the contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from salon import run, stages
from salon.config import build
from salon.models.latent_diffusion import LatentDiffusion
from salon.types import Batch

MODEL = "latent_diffusion/tiny"


@pytest.fixture
def model(mini: Callable[..., DictConfig]) -> LatentDiffusion:
    cfg = mini(MODEL)
    data = build(cfg.data, "data")
    data.prepare_data()
    ready = stages.parts(cfg, data.identity, run.train)
    made = run.make_model(cfg, ready, data.identity)
    assert isinstance(made, LatentDiffusion)
    made.log = lambda *_, **__: None  # type: ignore[method-assign]
    return made


def images(count: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x, ["a red circle"] * len(x), [""] * len(x))


def test_latents_are_standard_and_go_back(model: LatentDiffusion) -> None:
    x = images(256)
    model.measure_scale(map(batch_of, x.split(64)))
    z = model.encode(batch_of(x), drawn=True)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=0.1, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=0.1, rtol=0)
    moments = model.autoencoder.encode(x)
    torch.testing.assert_close(
        model.decode(model.encode(batch_of(x), drawn=False)), model.autoencoder.decode(moments.mean)
    )


def test_the_scale_is_measured_over_all_batches(model: LatentDiffusion) -> None:
    x = images(64)
    model.measure_scale([batch_of(x)])
    whole = model.latent_mean.clone(), model.latent_std.clone()
    model.measure_scale(map(batch_of, x.split(16)))
    torch.testing.assert_close(model.latent_mean, whole[0])
    torch.testing.assert_close(model.latent_std, whole[1])
    model.measure_scale([batch_of(x[:16])])
    assert not torch.allclose(model.latent_mean, whole[0])


def test_captions_are_dropped_at_the_rate(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.measure_scale([batch_of(images())])
    model.drop = 0.25
    seen: list[float] = []
    null = model.null()

    def spy(noised: object, t: object, text: object) -> torch.Tensor:
        same = (text.pooled == null.pooled).all(1)  # type: ignore[attr-defined]
        seen.append(float(same.float().mean()))
        return torch.zeros(64, requires_grad=True)

    monkeypatch.setattr(model, "loss", spy)
    batch = Batch(images(), ["a red circle"] * 64, [""] * 64)
    torch.manual_seed(0)
    for _ in range(40):
        model.training_step(batch, 0)
    rate = sum(seen) / len(seen)
    assert abs(rate - 0.25) < 3 * (0.25 * 0.75 / (40 * 64)) ** 0.5


def test_guidance_at_one_and_zero(model: LatentDiffusion) -> None:
    model.measure_scale([batch_of(images())])
    torch.manual_seed(1)
    for parameter in model.unet.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    caption, empty = ["a small red circle"], [""]
    model.set_sampling(guidance=1.0)
    conditional, unconditional = model.sample(caption, [0]), model.sample(empty, [0])
    model.set_sampling(guidance=0.0)
    torch.testing.assert_close(model.sample(caption, [0]), unconditional)
    assert not torch.allclose(conditional, unconditional)
    model.set_sampling(guidance=3.0)
    assert not torch.allclose(model.sample(caption, [0]), conditional)


def test_validation_loss_is_a_number_to_stop_on(model: LatentDiffusion) -> None:
    """The same at every call, whatever the generator does in between."""
    model.measure_scale([batch_of(images())])
    told: list[float] = []
    model.log = lambda name, value, **_: told.append(float(value)) if name == "val/loss" else None  # type: ignore[method-assign]
    batch = Batch(images(16), ["a red circle"] * 16, [""] * 16)
    with torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            model.validation_step(batch, 0)
        model.validation_step(batch, 1)
    assert told[0] == told[1]
    assert told[2] != told[0], "another batch has other noise"


def test_only_the_unet_learns(model: LatentDiffusion) -> None:
    model.measure_scale([batch_of(images())])
    model.train()
    batch = Batch(images(8), ["a red circle"] * 8, [""] * 8)
    torch.nn.init.normal_(model.unet.conv_out.weight)
    model.training_step(batch, 0).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.unet.parameters())
    assert all(p.grad is None for p in [*model.autoencoder.parameters(), *model.text.parameters()])


def test_it_learns_one_batch(mini: Callable[..., DictConfig], model: LatentDiffusion) -> None:
    """Three flat pictures by heart, from their captions: the loss falls to a fraction."""
    x = torch.eye(3).mul(2).sub(1)[:, :, None, None].expand(3, 3, 16, 16).repeat(4, 1, 1, 1)
    model.autoencoder.quant_conv.get_parameter("bias").data[4:] = -30  # latents without noise
    model.measure_scale([batch_of(x)])
    batch = Batch(x, [f"a {c} circle" for c in ("red", "green", "blue")] * 4, [""] * 12)
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=3e-3)
    losses = []
    for step in range(250):
        torch.manual_seed(step)
        loss = model.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.resolution=18"], "does not divide by the autoencoder's downsampling of 4"),
        (["model.sampler=eulr"], "expected one of"),
        (["model.steps=0"], "steps=0"),
    ],
)
def test_mistakes(
    mini: Callable[..., DictConfig], tmp_path: Path, overrides: list[str], says: str
) -> None:
    part = stages.parts(cfg := mini(MODEL), build(cfg.data, "data").identity, run.train)
    with pytest.raises(ValueError, match=says):
        run.make_model(mini(MODEL, *overrides), part, "")
