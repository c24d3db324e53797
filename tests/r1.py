"""R1, and the discriminators that it asks for, written out for every family that offers it.

N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from salon.losses.penalties import LazyR1
from salon.models.adversarial import Adversarial
from salon.types import Batch

GAMMA, EVERY = 0.6, 3
R1 = LazyR1(gamma=GAMMA, every=EVERY)


def check(
    model: Adversarial[Any],
    batch: Batch,
    seen: Callable[[Any], Tensor],  # of a play: the real images that D looks at
    score: Callable[[Any, Tensor], Tensor],  # of a play and those: all their logits' sum, (N,)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With R1, on its turn, D's loss is `EVERY` times as much more, and D learns from that alone.

    Under autocast, too, of logits in float32."""
    model.train()
    play = model.prepare(batch)
    parameters = list(model.discriminator.parameters())

    def step(batches: int, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        monkeypatch.setattr(type(model), "batches_seen", batches)
        torch.manual_seed(1)  # of fakes that are drawn for this loss
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total, told = model.discriminator_loss(play)
        model.discriminator.zero_grad()
        total.backward(retain_graph=True)
        return total.detach(), told, flat([p.grad for p in parameters])

    smooth, plain = step(2 * EVERY), step(2 * EVERY + 1)
    x = seen(play).clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(play, x).sum(), x, create_graph=True)
    penalty = GAMMA / 2 * slope.square().sum((1, 2, 3)).mean()
    assert penalty > 1e-3
    assert "r1" not in plain[1]
    torch.testing.assert_close(smooth[1]["r1"], penalty)
    torch.testing.assert_close(smooth[0], plain[0] + EVERY * penalty)
    learnt = flat(torch.autograd.grad(EVERY * penalty, parameters, materialize_grads=True))
    assert learnt.norm() > 1e-2 * plain[2].norm()
    torch.testing.assert_close(smooth[2] - plain[2], learnt, rtol=1e-3, atol=1e-5)

    rounded = step(0, autocast=True)
    torch.testing.assert_close(rounded[1]["r1"], penalty, rtol=1e-5, atol=0)
    torch.testing.assert_close(rounded[0], smooth[0], rtol=0.05, atol=0)
    assert all(p.grad is None for p in model.generator.parameters())
    assert batch.images.grad is None
    assert not batch.images.requires_grad


def flat(gradients: Any) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def fit_in_bfloat16(model: Adversarial[Any], batch: Batch) -> None:
    """R1's turn is the first batch; the text comes in bfloat16 there."""
    assert model.r1 is not None
    before = [p.clone() for p in model.discriminator.parameters()]
    trainer = toy.trainer([], batches=1, validate_every=1, precision="bf16-mixed")
    trainer.fit(model, torch.utils.data.DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert trainer.callback_metrics["train/d_r1"] > 0
    after = list(model.discriminator.parameters())
    assert all(p.isfinite().all() for p in after)
    assert not all(map(torch.equal, after, before))


def assert_norm(network: nn.Module, norm: str, *looks: tuple[Tensor, Tensor]) -> None:
    """With "batch" it mixes images. With "none" it has no normalisation and He's law, and each
    logit is of its own image.

    `looks`: logits (N,) in training, and what each may depend on (N, ...)."""
    plain = norm == "none"
    assert any("Norm" in type(part).__name__ for part in network.modules()) != plain
    assert follows_he(network) == plain
    for logits, inputs in looks:
        (slope,) = torch.autograd.grad(logits[1], inputs, retain_graph=True)
        touched = slope.flatten(1).ne(0).any(1).tolist()
        assert touched == [i == 1 or not plain for i in range(len(logits))]


def follows_he(network: nn.Module) -> bool:
    """For leaky ReLUs of slope 0.2."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            wanted = math.sqrt(2 / (1 + 0.2**2) / conv.weight[0].numel())
            if conv.weight.std().item() != pytest.approx(wanted, rel=0.15):
                return False
            if conv.bias is not None and conv.bias.any():
                return False
    return True
