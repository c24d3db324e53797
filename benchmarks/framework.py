"""python benchmarks/framework.py [--batches N] [--rounds N] [KEY=VALUE ...]

What a training costs beside its arithmetic: a run as train.py makes it (Lightning, every callback
that acts in a batch, guard, average, costs, metrics.csv) against a loop written by hand that does
the same sums: the model's loss, backward, clipping, the optimiser, the rate, the average. Batches
lie in memory and both take turns, on one thread; the number to quote is the ratio of the medians of
process CPU seconds a batch. The last batch, after which the run is saved, is timed by itself, and
what it took longer is told as a share of the budget.checkpoint_every batches from one checkpoint to
the next. KEY=VALUE are settings of train.py, `model=cvae/tiny` among them; for GANs, whose loop is
another one, see adversarial.py. README.md beside this file has results.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import nn
from trainings import InMemory, Stopwatch

from salon import run, stages
from salon.callbacks.loggers import MetricsCsv
from salon.config import build
from salon.doors import CONF
from salon.types import Batch

SHORT = "['budget.batches=2','budget.validate_every=2','gate=null']"
WARM = 4  # batches that are not timed: operations are counted in the first


def by_salon(
    cfg: DictConfig, model: Any, batches: list[Batch], folder: Path
) -> tuple[float, float]:
    """Seconds a batch, and those of a checkpoint."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    callbacks, save = run.make_callbacks(cfg, folder)
    logger, watch = MetricsCsv(folder=folder), Stopwatch(WARM, cool=1)
    logger.clock = lambda: {"images_seen": model.images_seen, "batches": model.batches_seen}
    trainer = Trainer(
        **run.trainer_options(cfg, model), callbacks=[*callbacks, save, watch], logger=logger,
        default_root_dir=folder, max_epochs=1, max_steps=-1, limit_train_batches=len(batches),
        limit_val_batches=0, num_sanity_val_steps=0, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=InMemory(batches))
    return watch.seconds, watch.ends[-1] - watch.ends[-2] - watch.seconds


def by_hand(cfg: DictConfig, model: Any, batches: list[Batch]) -> float:
    model.log = lambda *_, **__: None
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = model.make_optimizer(trained)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: model.schedule(i, len(batches)))
    averaged = [p for p in model.averaged.state_dict().values() if p.is_floating_point()]
    average = [p.clone() for p in averaged]
    watch = Stopwatch(WARM, cool=1)
    model.train()
    for i, batch in enumerate(batches):
        torch.manual_seed(i)
        loss = model.training_step(batch, i)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, cfg.trainer.gradient_clip_val)
        optimizer.step()
        rate.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, averaged, 0.01)
        watch.on_train_batch_end()
    del model.log
    return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    options, given = parser.parse_known_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as root,
        initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        stage = [f"text.overrides={SHORT}"]
        if not any(word.startswith("model=") and "diffusion" not in word for word in given):
            stage.append(f"model.autoencoder.overrides={SHORT}")
        cfg = compose("train", [
            "data.samples={train: 4000, val: 200, test: 1, heldout: 1}", "data.shard_size=500",
            f"data.root={root}/data", f"stages_dir={root}/stages", "logger=csv", "trainer=cpu",
            "callbacks.samples=null", "callbacks.quality=null", "callbacks.drops=null",
            *stage, *given,
        ])  # fmt: skip
        data = build(cfg.data, "data")
        data.prepare_data()
        ready = stages.parts(cfg, data.identity, run.train)
        batches = list(data.first_batches(options.batches))
        found: tuple[list[float], list[float], list[float]] = ([], [], [])
        for i in range(options.rounds + 1):
            models = [run.make_model(cfg, ready, data.identity) for _ in range(2)]
            for model in models:
                if hasattr(model, "measure_scale"):
                    model.measure_scale(batches[:4])
            ours, save = by_salon(cfg, models[0], batches, Path(root) / f"run_{i}")
            took = (ours, by_hand(cfg, models[1], batches), save)
            if i > 0:
                for kept, seconds in zip(found, took, strict=True):
                    kept.append(seconds)
    ours, bare, save = map(statistics.median, found)
    every = cfg.budget.checkpoint_every
    ratios = [one / other for one, other, _ in zip(*found, strict=True)]
    print(f"torch {torch.__version__}, one thread, batches of {cfg.batch_size}; CPU s a batch")
    print(f"{type(models[0]).__name__}: {ours:.4f} in a run, {bare:.4f} by hand, ratio of the")
    print(f"medians {ours / bare:.3f} (rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)});")
    print(f"a checkpoint, {save:.2f}, every {every} batches: {save / every / bare:.3f} more")


if __name__ == "__main__":
    main()
