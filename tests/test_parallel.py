"""One model on two processes: as one process would train it, by configuration alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from conftest import ROOT, mini_overrides
from salon import parallel, run

TWO = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.devices=2"]
LDM = "latent_diffusion/tiny"


def door(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def trained(folder: Path, *words: str) -> dict[str, Any]:
    done = door(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    contents: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return contents


def far(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The greatest difference of any weight, average or moment of the optimiser."""
    states = []
    for contents in (one, other):
        moments = {
            f"{i} {name}": value
            for i, state in contents["optimizer_states"][0]["state"].items()
            for name, value in state.items()
        }
        states.append({**contents["state_dict"], **contents["ema"]["average"], **moments})
    assert states[0].keys() == states[1].keys()
    return max(float((a - states[1][k]).abs().max()) for k, a in states[0].items())


@pytest.fixture(scope="module")
def replicas(mini_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one multirun, by two processes each."""
    folder = tmp_path_factory.mktemp("replicas")
    done = door(
        "-m", *mini_overrides(LDM, mini_root), "trainer=ddp", *TWO, "model.drop=0.1,0.5",
        f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${model.drop}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_each_job_of_a_multirun_has_its_own_folder_and_config(replicas: Path) -> None:
    assert sorted(path.name for path in replicas.iterdir() if path.is_dir()) == ["0.1", "0.5"]
    for name in ("0.1", "0.5"):
        folder = replicas / name
        told = json.loads((folder / "summary.json").read_text())
        assert (told["batches"], told["images_seen"]) == (4, 64), "eight images on each of two"
        contents = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        assert contents["salon"]["model"]["drop"] == float(name)
        assert (folder / "ranks" / "rank-1.log").exists()
        with (folder / "metrics.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        assert [row["images_seen"] for row in rows if row["val/loss"]] == ["32", "64"]
        assert len(list((folder / "samples").glob("*.png"))) == 2


def test_shards_train_as_replicas_do(replicas: Path, mini_root: Path, tmp_path: Path) -> None:
    found = trained(
        tmp_path, *mini_overrides(LDM, mini_root), "trainer=fsdp", *TWO, f"hydra.run.dir={tmp_path}"
    )
    expected = torch.load(replicas / "0.1/checkpoints/last.ckpt", weights_only=True)
    assert far(found, expected) < 1e-5
    assert found["optimizer_states"][0]["param_groups"][0]["params"] == [
        *range(len(found["optimizer_states"][0]["state"]))
    ]
    # Each goes on with the other's checkpoint.
    copies = {name: tmp_path / name for name in ("whole", "whole_in_shards", "shards_whole")}
    for name, copy in copies.items():
        source = tmp_path if name == "shards_whole" else replicas / "0.1"
        (copy / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "checkpoints/last.ckpt"):
            (copy / file).write_bytes((source / file).read_bytes())
    more = "budget.batches=6"
    on = trained(copies["whole"], f"resume={copies['whole']}", more)
    sharded = trained(
        copies["whole_in_shards"], f"resume={copies['whole_in_shards']}", more,
        "trainer.strategy=fsdp",
    )  # fmt: skip
    unsharded = trained(
        copies["shards_whole"], f"resume={copies['shards_whole']}", more, "trainer.strategy=ddp"
    )
    assert far(on, expected) > 1e-5, "two batches more"
    assert far(on, sharded) < 1e-5
    assert far(on, unsharded) < 1e-5


def test_gradients_of_low_rank(replicas: Path, mini_root: Path, tmp_path: Path) -> None:
    words = [*mini_overrides(LDM, mini_root), "trainer=ddp_powersgd", *TWO]
    exact = torch.load(replicas / "0.1/checkpoints/last.ckpt", weights_only=True)
    found = trained(
        tmp_path, *words, "trainer.power_sgd={rank: 1, start: 2}", f"hydra.run.dir={tmp_path}"
    )
    assert 1e-6 < far(found, exact) < 0.1


def test_two_networks_in_turn(mini_root: Path, tmp_path: Path) -> None:
    found = door(
        *mini_overrides("gan_int_cls/tiny", mini_root), "trainer=ddp", *TWO,
        f"hydra.run.dir={tmp_path}", "budget={batches: null, images: 64, validate_every: 2}",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    told = json.loads((tmp_path / "summary.json").read_text())
    assert (told["batches"], told["images_seen"]) == (4, 64)


def test_by_torchrun(mini_root: Path, tmp_path: Path) -> None:
    """Processes that somebody else started find each other, and need one folder."""
    words = [*mini_overrides("cvae/tiny", mini_root), "trainer=ddp", *TWO]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "train.py",
    ]  # fmt: skip

    def start(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun, *words, *more], cwd=ROOT, capture_output=True, text=True, timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    done = start(f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "summary.json").read_text())["images_seen"] == 64
    refused = start()
    assert refused.returncode != 0
    assert "hydra.run.dir=" in refused.stderr
    mismatch = start(f"hydra.run.dir={tmp_path / 'other'}", "trainer.devices=3")
    assert mismatch.returncode != 0
    assert "2 processes were started" in mismatch.stderr


def plain(mini: Callable[..., DictConfig], folder: Path, *more: str) -> dict[str, Any]:
    run.train(mini(LDM, *more), folder)
    contents: dict[str, Any] = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return contents


def test_compiled_and_remade_networks_are_the_same(
    mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    expected = plain(mini, tmp_path / "plain")
    remade = plain(mini, tmp_path / "remade", "trainer.checkpoint_activations=true")
    assert far(expected, remade) < 1e-6
    compiled = plain(
        mini, tmp_path / "compiled", "trainer.compile={backend: aot_eager, mode: null}"
    )
    assert far(expected, compiled) < 1e-5
    assert expected["salon"]["model"] == remade["salon"]["model"] == compiled["salon"]["model"]


def test_activations_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from salon.nn.blocks import ResBlock
    from salon.nn.unet import UNet

    torch.manual_seed(0)
    unet = UNet(
        in_channels=2, out_channels=2, channels=[32, 32], blocks=1, attention=[False, True],
        heads=None, head_dim=16, context_dim=4, depth=1, pooled_dim=None,
    )  # fmt: skip
    for parameter in unet.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    runs = []
    forward = ResBlock.forward
    monkeypatch.setattr(ResBlock, "forward", lambda *a: (runs.append(1), forward(*a))[1])
    gradients = []
    for _ in range(2):
        runs.clear()
        x = torch.ones(1, 2, 8, 8)
        unet(x, torch.tensor([0.5]), torch.ones(1, 3, 4)).square().sum().backward()
        gradients.append([p.grad.clone() for p in unet.parameters() if p.grad is not None])
        made = len(runs)
        unet.zero_grad()
        unet.checkpoint_activations()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    blocks = sum(isinstance(module, ResBlock) for module in unet.modules())
    assert made == 2 * blocks
    with torch.no_grad():
        runs.clear()
        unet(x, torch.tensor([0.5]), torch.ones(1, 3, 4))
    assert len(runs) == blocks, "not where nothing goes back"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.devices=2"], "trainer=ddp"),
        (["trainer.strategy=dpp"], "auto, ddp, fsdp"),
        (["trainer.devices=none"], "trainer.devices=none"),
        (["trainer.num_nodes=0"], "trainer.num_nodes=0"),
        (["trainer.power_sgd={rank: 2, start: 10}"], "trainer.strategy=ddp"),
        (["trainer=ddp", "trainer.power_sgd={rank: 0, start: 10}"], "R at least 1"),
        (["trainer=ddp", "trainer.power_sgd={rank: 2}"], "R at least 1"),
        (["trainer.compile={mode: fast}"], "backend"),
        (["trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"], "srun or torchrun"),
    ],
)
def test_what_makes_no_sense_is_refused(
    mini: Callable[..., DictConfig], tmp_path: Path, words: list[str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        run.train(mini(LDM, *words), tmp_path)


def test_a_gan_is_not_sharded(mini: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = mini("gan_int_cls/tiny", "trainer=fsdp", *TWO)
    with pytest.raises(ValueError, match="trainer=ddp"):
        run.train(cfg, tmp_path)


def test_how_many_processes() -> None:
    count = parallel.ranks
    assert count({}) == count({"devices": 1}) == 1
    assert count({"devices": 4, "num_nodes": 2}) == 8
    assert count({"devices": "auto", "accelerator": "cpu"}) == 1
