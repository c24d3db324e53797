"""python benchmarks/unet.py

A training step and a forward pass without gradients: our U-Net against UNet2DConditionModel of
diffusers at the same sizes. The two take turns, on one thread, in process CPU time, so that what
else the machine does falls on both alike; only the ratio of the medians travels between machines.
Needs the extra `dev`. README.md beside this file keeps what was tried.
"""

import argparse
import statistics
from collections.abc import Callable

import diffusers
import torch
from torch import Tensor, nn
from turns import interleaved

from salon.nn.unet import UNet

SIDE, LATENT, TOKENS, CONTEXT = 16, 4, 77, 256
CHANNELS, BLOCKS, HEADS = (64, 128, 256), 2, 8


def ours() -> nn.Module:
    return UNet(
        in_channels=LATENT,
        out_channels=LATENT,
        channels=CHANNELS,
        blocks=BLOCKS,
        attention=(True, True, False),
        heads=HEADS,
        head_dim=None,
        context_dim=CONTEXT,
        depth=1,
        pooled_dim=None,
    )


def theirs() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=LATENT,
        out_channels=LATENT,
        block_out_channels=CHANNELS,
        layers_per_block=BLOCKS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=HEADS,  # the name is historic: it counts heads
        cross_attention_dim=CONTEXT,
    )


def training_step(model: nn.Module, predict: Callable[..., Tensor], batch: int) -> Callable:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, t, context = inputs(batch)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        predict(model, x, t, context).square().mean().backward()
        optimizer.step()

    return step


def forward_pass(model: nn.Module, predict: Callable[..., Tensor], batch: int) -> Callable:
    x, t, context = inputs(batch)

    @torch.no_grad()
    def step() -> None:
        predict(model, x, t, context)

    return step


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(batch, LATENT, SIDE, SIDE)
    return x, torch.rand(batch), torch.randn(batch, TOKENS, CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    models = ours(), theirs()
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts[0] == counts[1]
    with torch.no_grad():  # layers that start at zero would leave most gradients zero
        for parameter in (p for model in models for p in model.parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))
    predicts = (
        lambda model, x, t, context: model(x, t, context),
        lambda model, x, t, context: model(x, 1000 * t, context).sample,
    )

    print(
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"{torch.get_num_threads()} thread, float32; {counts[0]:,} parameters, "
        f"{LATENT} x {SIDE} x {SIDE}, {TOKENS} tokens, batch {arguments.batch}; "
        f"median CPU seconds of {arguments.rounds} rounds"
    )
    print(f"{'':<14}{'salon':>8}{'diffusers':>11}{'ratio':>8}")
    for name, make in (("training step", training_step), ("no-grad forward", forward_pass)):
        steps = [make(m, p, arguments.batch) for m, p in zip(models, predicts, strict=True)]
        a, b = map(statistics.median, interleaved(steps, arguments.rounds))
        print(f"{name:<16}{a:>7.3f}{b:>11.3f}{a / b:>8.3f}")


if __name__ == "__main__":
    main()
