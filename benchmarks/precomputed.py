"""python benchmarks/precomputed.py [--batches N] [--rounds N] [KEY=VALUE ...]

Training of latent diffusion from precomputed latents and embeddings beside training from pictures:
the same batches, drawn from the data stream, forward, backward and the optimiser's step. CPU
seconds a batch on one thread, the two in turns; the number to quote is the ratio of the medians.
KEY=VALUE are settings of train.py. The networks are of their real size and hardly trained, which
costs the same; everything is made in a temporary folder. README.md beside this file has results.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from salon import precompute, run, stages
from salon.config import build

CONF = Path(__file__).resolve().parents[1] / "conf"
SHORT = "['budget.batches=2','budget.validate_every=2','gate=null']"


def settings(root: str, given: list[str]) -> list[str]:
    return [
        "data.samples={train: 2000, val: 200, test: 1, heldout: 1}", "data.shard_size=500",
        f"data.root={root}/data", f"stages_dir={root}/stages", f"data.precomputed_dir={root}/made",
        f"text.overrides={SHORT}", f"model.autoencoder.overrides={SHORT}", "logger=csv", *given,
    ]  # fmt: skip


def training(model: Any, data: Any, *, forget: bool) -> Iterator[float]:
    """CPU seconds of each batch, with what the data stream takes.

    The text tower remembers captions, which a small world has few of; `forget` makes each one new.
    """
    optimizer = model.make_optimizer(p for p in model.parameters() if p.requires_grad)
    batches = iter(data.train_dataloader())
    while True:
        if forget:
            model.text._memory.clear()
        begin = time.process_time()
        loss = model.training_step(next(batches), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options, given = parser.parse_known_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as root,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        cfg = compose("train", settings(root, given))
        data = build(cfg.data, "data")
        data.prepare_data()
        model = run.make_model(cfg, stages.parts(cfg, data.identity, run.train), data.identity)
        model.log = lambda *_, **__: None
        model.measure_scale(data.first_batches(4))
        begin = time.process_time()
        _, tally = precompute.write(
            model, data, batch_size=64, workers=0, device=torch.device("cpu")
        )
        once = (time.process_time() - begin) / tally.used.total()
        made = build(cfg.data, "data")
        made.use_precomputed(precompute.identities(model))
        walks = [
            training(model, data, forget=False), training(model, data, forget=True),
            training(model, made, forget=False),
        ]  # fmt: skip
        found: list[list[float]] = [[] for _ in walks]
        for i in range(options.rounds + 1):
            for walk, seconds in zip(walks, found, strict=True):
                took = statistics.fmean(next(walk) for _ in range(options.batches))
                if i > 0:
                    seconds.append(took)
    pictures, new, latents = map(statistics.median, found)
    print(
        f"torch {torch.__version__}, one thread, batches of {cfg.batch_size}; CPU seconds a batch"
    )
    print(f"{'':<38}{'seconds':>8}{'ratio':>8}")
    print(f"{'precomputed':<38}{latents:>8.3f}{1:>8.2f}")
    print(f"{'pictures, captions seen before':<38}{pictures:>8.3f}{pictures / latents:>8.2f}")
    print(f"{'pictures, every caption new':<38}{new:>8.3f}{new / latents:>8.2f}")
    print(f"precomputing: {once * 1000:.2f} CPU milliseconds a picture, once")


if __name__ == "__main__":
    main()
