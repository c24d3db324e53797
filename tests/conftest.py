"""Miniature worlds: shards of small pictures in a temporary folder, and configs of small models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import salon  # noqa: F401  (before torch: it says how threads wait)

ROOT = Path(__file__).resolve().parents[1]
# As many threads here as in the processes that tests start: sums are rounded alike only then.
os.environ["OMP_NUM_THREADS"] = "2"
torch.set_num_threads(2)

# A data set of 16-px pictures, and stages of a few batches: everything real, and small.
MINI_DATA = [
    "data.resolution=16",
    "data.samples={train: 96, val: 32, test: 32, heldout: 32}",
    "data.shard_size=24",
    "data.val_samples=16",
    "data.window=20",
]
MINI_STAGES = [
    'text.overrides=["model.tower.vision.width=8","model.tower.text.layers=1","batch_size=8",'
    '"budget.batches=2","budget.validate_every=2"]',
]
MINI_AUTOENCODER = [
    'model.autoencoder.overrides=["model.network.channels=[16]","model.network.latent_channels=4",'
    '"batch_size=8","budget.batches=2","budget.validate_every=2"]',
]
MINI_RUN = [
    "batch_size=8",
    "budget={batches: 4, validate_every: 2, checkpoint_every: 2}",
    "callbacks.quality.images=16",
    "callbacks.samples.number=2",
    "logger=csv",
]
MINI_STAGE_ONE = ["model.generator.channels=8", "model.discriminator.channels=2"]
MINI_STAGE_RUN = [
    "batch_size=8", "budget.batches=2", "budget.validate_every=2", "callbacks.quality.images=16",
]  # fmt: skip

MINI_DAMSM = [
    "model.matcher.image={channels: [8, 8], level: 1}", "model.matcher.features=8",
    "batch_size=8", "budget.batches=2", "budget.validate_every=2",
]  # fmt: skip


def nested(overrides: list[str]) -> str:
    """Overrides as one value of another override."""
    return "[" + ",".join(f"'{override}'" for override in overrides) + "]"


MINI_MODELS = {
    "latent_diffusion/tiny": [
        *MINI_AUTOENCODER, "model.unet.channels=[16,32]", "model.unet.head_dim=8", "model.steps=3",
        "model.scale_batches=2",
    ],
    "cvae/tiny": ["model.channels=[16,16]", "model.width=32", "model.latent=4"],
    "df_gan/tiny": [
        "model.generator.channels=8", "model.generator.latent=4", "model.discriminator.channels=8",
        "model.discriminator.head=8",
    ],
    "gan_int_cls/tiny": ["model.generator.channels=4", "model.discriminator.channels=4"],
    "stackgan/stage_one_tiny": [*MINI_STAGE_ONE],
    "stackgan/tiny": [
        "model.stage_one.overrides=" + nested([*MINI_STAGE_ONE, *MINI_STAGE_RUN]),
        "model.generator.channels=8", "model.discriminator.channels=2",
    ],
    "stackgan/tree_tiny": ["model.generator.channels=8", "model.discriminator.channels=2"],
    "attngan/tiny": [
        "model.damsm.overrides=" + nested(MINI_DAMSM),
        "model.generator={channels: 4, latent: 4, condition: 4}", "model.discriminator.channels=4",
    ],
}  # fmt: skip


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For networks so small that they wait for a second thread longer than it helps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's shards and stages lie: rendered and trained once."""
    return tmp_path_factory.mktemp("mini")


@pytest.fixture
def hydra_conf() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@pytest.fixture
def mini(hydra_conf: None, mini_root: Path) -> Callable[..., DictConfig]:
    """The composed config of a model on the miniature data set."""

    def make(model: str, *overrides: str) -> DictConfig:
        return compose("train", mini_overrides(model, mini_root) + list(overrides))

    return make


def mini_overrides(model: str, root: Path) -> list[str]:
    places = [f"data.root={root}/data", f"stages_dir={root}/stages"]
    return [
        f"model={model}", *MINI_DATA, *MINI_STAGES, *MINI_MODELS[model], *MINI_RUN, *places,
    ]  # fmt: skip


@pytest.fixture
def offline_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """W&B without an account, a network or anything left in the home folder."""
    for name in ("WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    yield tmp_path
    import wandb

    wandb.finish()
    wandb.teardown()
