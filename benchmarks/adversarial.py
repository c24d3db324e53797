"""python benchmarks/adversarial.py

A GAN's training step in Lightning and Salon (text looked up, wrong pairs found, what is logged; no
clipping, no EMA) against the same networks in a loop that is written by hand in plain PyTorch, text
and wrong pairs ready. Both see the same batches in memory, take turns, and are timed on one thread
in process CPU time; only the ratio of the medians travels between machines.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F
from trainings import InMemory, Stopwatch

from salon.config import build
from salon.models.adversarial import Adversarial
from salon.text.base import TextTower, unit
from salon.types import Batch, Text

CONF = str(Path(__file__).resolve().parents[1] / "conf")
WIDTH = 64  # of the text


class RandomText(TextTower):
    """A vector for each caption: what a tower costs is another benchmark's question."""

    width = pooled_width = WIDTH

    def encode(self, captions: list[str]) -> Text:  # type: ignore[override]
        count = len(captions)
        mask = torch.ones(count, 1, dtype=torch.bool)
        return Text(torch.randn(count, 1, WIDTH), mask, torch.randn(count, WIDTH))


def in_lightning(model: Adversarial[Any], batches: list[Batch]) -> float:
    watch = Stopwatch()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=1, max_steps=-1, logger=False, callbacks=[watch],
        limit_train_batches=len(batches), limit_val_batches=0, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=20,
    )  # fmt: skip
    trainer.fit(model, datamodule=InMemory(batches))
    return watch.seconds


def by_hand(model: Adversarial[Any], batches: list[Batch], losses: Any) -> float:
    """`losses(images, text, wrong)` yields D's loss, and after D's step G's."""
    d_opt = model.make_discriminator_optimizer(model.discriminator.parameters())
    g_opt = model.make_optimizer(model.generator.parameters())
    ready = []
    for batch in batches:
        text = unit(model.text(batch.captions).pooled)
        ready.append((batch.images, text, torch.arange(1, len(text) + 1) % len(text)))
    watch = Stopwatch()
    for images, text, wrong in ready:
        turns = losses(model, images, text, wrong)
        d_opt.zero_grad()
        next(turns).backward()
        d_opt.step()
        model.discriminator.requires_grad_(False)
        g_opt.zero_grad()
        next(turns).backward()
        g_opt.step()
        model.discriminator.requires_grad_(True)
        watch.on_train_batch_end()
    return watch.seconds


def bce(logits: Tensor, real: bool) -> Tensor:
    return F.softplus(-logits if real else logits).mean()


def gan_int_cls(model: Any, x: Tensor, t: Tensor, wrong: Tensor) -> Any:
    g, d, n = model.generator, model.discriminator, len(x)
    real, mixed = d(x, t), d(x[wrong], t)
    fake = d(g(torch.randn(n, model.latent), t).detach(), t)
    yield bce(real, True) + 0.5 * bce(mixed, False) + 0.5 * bce(fake, False)
    t = torch.cat([t, (t[: n // 2] + t[n // 2 :]) / 2])
    logits = d(g(torch.randn(len(t), model.latent), t), t)
    yield bce(logits, True)


def df_gan(model: Any, x: Tensor, t: Tensor, wrong: Tensor) -> Any:
    g, d = model.generator, model.discriminator
    fakes = g(torch.randn(len(x), g.latent), t)
    x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
    h = d.features(x)
    real, mixed, fake = d.match(h, t), d.match(h, t[wrong]), d(fakes.detach(), t)
    hinge = F.relu(1 - real).mean() + (F.relu(1 + mixed).mean() + F.relu(1 + fake).mean()) / 2
    gradients = torch.autograd.grad(real.sum(), (x, t), create_graph=True)
    square = sum(part.square().flatten(1).sum(1) for part in gradients)
    yield hinge + 2 * (square**3).mean()
    yield -d(fakes, t.detach()).mean()


FAMILIES: dict[str, Callable[..., Any]] = {"gan_int_cls": gan_int_cls, "df_gan": df_gan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=6, help="in a round; the first is not timed")
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    batches = [
        Batch(
            torch.rand(asked.batch_size, 3, 32, 32) * 2 - 1,
            [f"caption {i} of batch {n}" for i in range(asked.batch_size)],
            [f"{n}-{i}" for i in range(asked.batch_size)],
        )
        for n in range(asked.batches)
    ]
    print(f"{'family':14} {'salon, s':>10} {'by hand, s':>10} {'ratio':>7}")
    for name, losses in FAMILIES.items():
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("train", [f"model={name}/tiny"])
        # Each its own weights: a GAN that trains on gets slower or faster with its activations.
        models = [build(cfg.model, "model", text=RandomText(remember=10**6)) for _ in range(2)]
        times: list[list[float]] = [[], []]
        for i in range(asked.rounds + 1):
            found = in_lightning(models[0], batches), by_hand(models[1], batches, losses)
            for kept, seconds in zip(times, found, strict=True):
                kept += [seconds] if i else []  # the first round warms up
        ours, theirs = map(statistics.median, times)
        print(f"{name:14} {ours:10.4f} {theirs:10.4f} {ours / theirs:7.3f}", flush=True)


if __name__ == "__main__":
    main()
