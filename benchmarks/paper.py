"""python benchmarks/paper.py [--resolution 256] [--images 120e6] [--epochs 5]

What training latent diffusion would take on machines that are not at hand, on paper: operations
of each size, counted on shapes without memory (forward and backward of the U-Net, forward of the
frozen autoencoder), times pictures, over the share of a device's peak that is assumed. Nothing is
measured here; the share has to be: cost/train_flops_per_image and cost/images_per_second of a short
run.
"""

import argparse
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from salon.config import build
from salon.doors import CONF
from salon.metrics.flops import FlopCount

SIZES = ("tiny", "small", "base", "sd1")
BATCH, TOKENS = 2, 77
# Dense bfloat16 operations a second, by the makers' data sheets.
DEVICES = {"A100": 312e12, "H100": 989e12}


def counted(size: str, resolution: int) -> tuple[float, float, int]:
    """Operations of a training picture in the U-Net and in the autoencoder, and parameters."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"model=latent_diffusion/{size}", f"data.resolution={resolution}"])
        stage = compose("train", [f"model={cfg.model.autoencoder._stage_}"])
    width = 768 if size in ("base", "sd1") else 512  # of the text
    with torch.device("meta"):
        autoencoder: Any = build(stage.model.network, "network")
        channels = autoencoder.latent_channels
        unet = build(cfg.model.unet, "unet")(
            in_channels=channels, out_channels=channels, context_dim=width,
            pooled_dim=width if cfg.model.pooled else None,
        )  # fmt: skip
        images = torch.empty(BATCH, 3, resolution, resolution)
        with FlopCount() as encoding, torch.no_grad():
            latents = autoencoder.encode(images).mean
        context, pooled = torch.empty(BATCH, TOKENS, width), torch.empty(BATCH, width)
        with FlopCount() as training:
            out = unet(latents, torch.empty(BATCH), context, None, pooled)
            out.sum().backward()
    parameters = sum(p.numel() for p in unet.parameters())
    return training.total / BATCH, encoding.total / BATCH, parameters


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--images", type=float, default=120e6, help="in the data set")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached")
    parser.add_argument("--price", type=float, default=2.0, help="of a device's hour")
    args = parser.parse_args()
    seen = args.images * args.epochs
    table = Table(
        title=f"{seen:.3g} pictures of {args.resolution} px at {args.share:.0%} of the peak",
        title_justify="left",
    )
    for name in ("U-Net", "parameters", "training GFLOP/picture", "encoding GFLOP/picture"):
        table.add_column(name, justify="right")
    for name in DEVICES:
        table.add_column(f"{name}: pictures/s", justify="right")
        table.add_column("days on 8", justify="right")
        table.add_column(f"at {args.price:g} an hour", justify="right")
    for size in SIZES:
        training, encoding, parameters = counted(size, args.resolution)
        cells = [
            size,
            f"{parameters / 1e6:,.1f} M",
            f"{training / 1e9:,.1f}",
            f"{encoding / 1e9:,.1f}",
        ]
        for peak in DEVICES.values():
            rate = peak * args.share / (training + encoding)
            hours = seen / rate / 3600
            cells += [f"{rate:,.0f}", f"{hours / 8 / 24:,.1f}", f"{hours * args.price:,.0f}"]
        table.add_row(*cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
