"""What the VAE promises beyond the contract: a prior that hears the caption."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import toy
from salon.losses.kl import kl
from salon.models.cvae import CVAE, standardised
from salon.nn.autoencoder import Moments
from salon.types import Batch

pytestmark = pytest.mark.usefixtures("one_thread")


def made(temperature: float = 1.0) -> CVAE:
    torch.manual_seed(0)
    return CVAE(
        text=toy.clip(), resolution=16, channels=[8, 8], patch=2, width=16, latent=4, beta=1.0,
        scale=0.1, temperature=temperature, optimizer=partial(torch.optim.Adam, lr=5e-3),
        schedule=lambda *_: 1.0,
    )  # fmt: skip


def test_the_divergence_is_from_the_prior() -> None:
    torch.manual_seed(0)
    q, p = (Moments(*torch.randn(2, 5, 4, dtype=torch.float64)) for _ in range(2))
    expected = kl_divergence(*(Normal(m.mean, (0.5 * m.logvar).exp()) for m in (q, p))).sum(1)
    torch.testing.assert_close(kl(standardised(q, p)), expected, rtol=1e-12, atol=1e-12)


def test_the_prior_starts_as_the_standard_normal() -> None:
    model = made()
    prior = model.prior(model.text(toy.CAPTIONS).pooled)
    assert torch.equal(prior.mean, torch.zeros(4, 4))
    assert torch.equal(prior.logvar, torch.zeros(4, 4))


def test_temperature_shrinks_the_prior_around_its_mean() -> None:
    model = made(temperature=0.0)
    last = model.generator["prior"][-1]
    torch.nn.init.normal_(last.weight)
    text = model.text(toy.CAPTIONS)
    expected = model.decode(model.prior(text.pooled).mean, text.pooled)
    torch.testing.assert_close(model.paint(torch.randn(4, 4), text), expected)
    model.set_sampling(temperature=1.0)
    assert not torch.allclose(model.paint(torch.randn(4, 4), text), expected)


def test_what_it_draws_follows_the_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions that name a gray level: what is drawn from the prior has to have it."""
    monkeypatch.setattr(CVAE, "log", lambda *_, **__: None)
    model = made().train()
    levels = torch.tensor([-0.9, -0.3, 0.3, 0.9])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for i in range(500):
        torch.manual_seed(i)
        index = torch.randint(4, (16,))
        images = levels[index][:, None, None, None].expand(-1, 3, 16, 16)
        batch = Batch(images, [toy.CAPTIONS[j] for j in index], [""] * 16)
        optimizer.zero_grad()
        model.training_step(batch, i).backward()
        optimizer.step()
    drawn = model.sample(toy.CAPTIONS * 4, list(range(16))).mean((1, 2, 3))
    assert (drawn - levels.repeat(4)).abs().max() < 0.3
