from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from conftest import ROOT, mini_overrides
from hearings import asked
from salon import run
from salon.jury.evaluate import evaluate


@pytest.fixture(scope="session")
def trained(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heard")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run.train(compose("train", mini_overrides("latent_diffusion/tiny", mini_root)), folder)
    GlobalHydra.instance().clear()
    return folder


@pytest.fixture(scope="session")
def heard(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jury")
    evaluate(asked(trained, out))
    return out
