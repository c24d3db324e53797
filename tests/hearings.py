"""What the tests of the jury ask of a model."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from conftest import ROOT

ASKED = [
    "images=16", "splits=[test,heldout]", "sets=[seen,phrasings]", "open=[color]", "set_images=8",
    "train_images=24", "price=null", "baselines=true", "label=tiny", "vary={steps: [1,2]}",
    "vary_images=8", "wall=3", "sampling_batch=5", "batch_size=8",
]  # fmt: skip


def asked(trained: Path, out: Path, *more: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("evaluate", [f"checkpoint={trained}", *ASKED, f"out={out}", *more])
