"""Penalties on the gradient of a discriminator's logits by its inputs.

    matching_aware    DF-GAN, Tao et al. 2022, "Matching-Aware zero-centered Gradient Penalty"
    zero_centered     R1 (of real images) and R2 (of fakes), Mescheder et al. 2018

Logit i has to depend on sample i alone, so the discriminator may have no batch normalisation. What
is made of the gradients is in float32; the gradients themselves are as exact as the logits, so D
has to be run outside autocast for them.

N images, E features of the condition.
"""

import contextlib

import torch
from torch import Tensor


def _squared_gradient(logits: Tensor, *inputs: Tensor) -> Tensor:
    """|g|^2 of each sample's logit, jointly over the inputs, each (N, ...)."""
    assert all(x.requires_grad for x in inputs), "set requires_grad before running D"
    with torch.autocast(logits.device.type, enabled=False):
        gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
        squares = [g.float().square().flatten(1).sum(1) for g in gradients]  # (N,) each
        return torch.stack(squares).sum(0)  # (N,)


def matching_aware(
    logits: Tensor,  # (N,), of real images with their own captions
    images: Tensor,  # (N, 3, H, W)
    condition: Tensor,  # (N, E)
    *,
    weight: float,
    power: float,  # of the joint norm of the two gradients
) -> Tensor:
    """weight * E[|(g_x, g_e)|^power]: the norm is that over image and condition together."""
    if power < 2:
        raise ValueError(
            f"matching-aware penalty: power={power}; expected 2 or more (the paper's is 6), for "
            "below 2 its own gradient is infinite where D is flat"
        )
    # Of the square and not of its root, whose gradient is NaN at zero.
    return weight * _squared_gradient(logits, images, condition).pow(power / 2).mean()


def zero_centered(
    logits: Tensor,  # (N,)
    images: Tensor,  # (N, 3, H, W)
) -> Tensor:
    """E |g_x|^2, summed over pixels. Mescheder et al. 2018 weigh it by gamma / 2."""
    return _squared_gradient(logits, images).mean()


class LazyR1:
    """gamma / 2 E |grad D(x)|^2 of real images x: Mescheder et al. 2018, equation 9; on every k-th
    batch, k times as strong: lazy regularisation, Karras et al. 2020 (StyleGAN2), section 3.1."""

    def __init__(self, *, gamma: float, every: int) -> None:
        if not gamma > 0:
            raise ValueError(f"model.r1.gamma={gamma}; expected a weight above 0, or model.r1=null")
        if every < 1:
            raise ValueError(f"model.r1.every={every}; expected a number of batches, at least 1")
        self.gamma, self.every = gamma, every

    def due(self, batches: int) -> bool:
        """After so many batches, is it this one's turn?"""
        return batches % self.every == 0

    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """Of the logits (N,) of images (N, 3, H, W), which have to require gradients; ()."""
        return self.every * 0.5 * self.gamma * zero_centered(logits, images)


def full_precision(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Float32 for what a penalty differentiates twice and raises to a power, where `wanted`."""
    if not wanted:
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
