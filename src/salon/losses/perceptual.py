"""A perceptual distance between images: LPIPS, Zhang et al. 2018, through torchmetrics.

Its linear heads come with torchmetrics; its backbone's weights are torchvision's, downloaded on
first use or found in torch's hub cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

NETS = {
    "vgg": "vgg16-397923af.pth",
    "alex": "alexnet-owt-7be5be79.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


def lpips(*, net: str) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, x^), each (N, 3, H, W) in [-1, 1], to a distance for each image (N,), with gradients.

    Raises ValueError for another net, and where its weights are neither cached nor to be had.
    """
    if net not in NETS:
        raise ValueError(f"perceptual.net={net!r}; expected one of {', '.join(NETS)}")
    try:
        network = LearnedPerceptualImagePatchSimilarity(net_type=net).net  # type: ignore[arg-type]
    except OSError as error:  # URLError is one
        raise ValueError(
            f"perceptual.net={net!r}: the weights could not be downloaded ({error}). Offline: put "
            f"torchvision's {NETS[net]} into {torch.hub.get_dir()}/checkpoints, or go without: "
            "model.perceptual=null"
        ) from error
    network.requires_grad_(False).eval()

    def distance(x: Tensor, other: Tensor) -> Tensor:
        network.to(x.device)
        return network(x, other, normalize=False).flatten()  # (N,)

    return distance
