"""Checkpoints of models on pretrained towers leave the tower's weights where they came from."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from hydra import compose

from conftest import mini_overrides
from salon import checkpoint, run

NAME = "ViT-S-32-alt"


@pytest.fixture
def trained(hydra_conf: None, mini_root: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), tmp_path / "clip.pt")
    overrides = [o for o in mini_overrides("cvae/tiny", mini_root) if not o.startswith("text.")]
    tower = ["text=clip/vit_b_32", f"text.name={NAME}", f"text.weights={tmp_path}/clip.pt"]
    cfg = compose("train", [*overrides, *tower, "callbacks.quality.images=4"])
    run.train(cfg, tmp_path / "run")
    return tmp_path / "run"


def test_a_pretrained_tower_is_not_copied_and_is_loaded_again(trained: Path) -> None:
    contents = checkpoint.read(trained)
    assert not [name for name in contents["state_dict"] if name.startswith("text.")]
    assert (trained / checkpoint.LAST).stat().st_size < 10 * 2**20
    model = checkpoint.load(trained)
    before = model.sample(["a red circle"], [0])
    assert torch.equal(checkpoint.load(trained).sample(["a red circle"], [0]), before)
    weights = torch.load(trained.parent / "clip.pt", weights_only=True)
    assert torch.equal(model.text.clip.ln_final.weight, weights["ln_final.weight"])
    (trained.parent / "clip.pt").unlink()
    with pytest.raises(ValueError, match=r"neither a file nor a tag"):
        checkpoint.load(trained)


def test_missing_weights_of_our_own_are_an_error(trained: Path, tmp_path: Path) -> None:
    contents = torch.load(trained / checkpoint.LAST, weights_only=True)
    contents["state_dict"].pop("encoder.conv_in.weight")
    torch.save(contents, tmp_path / "torn.ckpt")
    with pytest.raises(ValueError, match=r"1 weights are missing .*encoder\.conv_in\.weight"):
        checkpoint.load(tmp_path / "torn.ckpt")
