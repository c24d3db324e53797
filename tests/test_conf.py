"""Every config composes, names only what exists, and builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf

from conftest import MINI_MODELS, ROOT
from salon import stages
from salon.config import STAGE, TARGET, build, check, to_plain
from salon.models.base import TextToImage, Trainee

CONF = ROOT / "conf"


def options(group: str) -> list[str]:
    files = (CONF / group).rglob("*.yaml")
    return sorted(str(file.relative_to(CONF / group).with_suffix("")) for file in files)


SHARDS = ["data=shards", "data.train=x", "data.val=x"]


@pytest.mark.parametrize("model", options("model"))
def test_every_model_composes_and_names_what_exists(hydra_conf: None, model: str) -> None:
    cfg = compose("train", [f"model={model}"])
    check(to_plain(cfg.model), "model")
    assert cfg.budget.batches >= 1
    assert cfg.budget.validate_every >= 1
    assert cfg.batch_size >= 1


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (g, o)
        for g in ("data", "text", "trainer", "callbacks", "logger", "metrics")
        for o in options(g)
    ],
)
def test_every_option_composes(hydra_conf: None, group: str, option: str) -> None:
    overrides = SHARDS if (group, option) == ("data", "shards") else [f"{group}={option}"]
    cfg = compose("train", overrides)
    node = to_plain(cfg[group])
    given = dict.fromkeys(("tower", "folder", "opening", "distance", "go_on"))
    for key, part in node.items() if group == "callbacks" else [("", node)]:
        if part is not None and part.get(TARGET, "") is not None:
            check(part, f"{group}.{key}", given)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_says_its_command(hydra_conf: None, experiment: str) -> None:
    cfg = compose("train", [f"experiment={experiment}"])
    check(to_plain(cfg.model), "model")
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text().split("\ndefaults")[0]
    assert f"experiment={experiment}" in head, "the header states the command"


@pytest.mark.parametrize("model", [m for m in options("model") if "/" in m])
def test_every_model_builds_at_its_own_size(hydra_conf: None, model: str) -> None:
    """On the meta device: constructors run, no memory is taken, nothing is trained."""
    cfg = compose("train", [f"model={model}"])
    with torch.device("meta"):
        given = {
            str(key): part_of(cfg, node)
            for key, node in cfg.model.items()
            if isinstance(node, DictConfig) and STAGE in node
        }
        module = build(cfg.model, "model", **given)
    assert isinstance(module, Trainee)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) > 0


def part_of(cfg: DictConfig, node: DictConfig) -> object:
    """The untrained part of a stage."""
    stage = stages.composed(cfg, node[STAGE], [])
    part = stage.model
    for step in node["take"].split("."):
        part = part[step]
    return build(part, "part")


def test_hyper_parameters_stand_once(hydra_conf: None) -> None:
    """Nothing in a model's constructor has a default: a number lives in conf/ alone."""
    import inspect

    from salon.config import _locate

    for model in options("model"):
        target = compose("train", [f"model={model}"]).model[TARGET]
        for name, parameter in inspect.signature(_locate(target, "model")).parameters.items():
            assert parameter.default is parameter.empty, f"{target}.{name} has a default in code"


def test_families_in_the_miniature_world_are_all_families(hydra_conf: None) -> None:
    families = set()
    for model in options("model"):
        if "/" in model:
            target = compose("train", [f"model={model}"]).model[TARGET]
            from salon.config import _locate

            if issubclass(_locate(target, "model"), TextToImage) and model.endswith("tiny"):
                families.add(model)
    assert families == set(MINI_MODELS), "a new family needs a miniature in tests/conftest.py"


def test_a_config_file_with_a_typo_is_refused(
    mini: Callable[..., DictConfig], tmp_path: Path
) -> None:
    from salon import run

    cfg = mini("cvae/tiny")
    OmegaConf.set_struct(cfg, False)
    cfg.budgte = {"batches": 3}
    with pytest.raises(ValueError, match=r"'budgte'.*nearest known one is 'budget'"):
        run.train(cfg, tmp_path)
    cfg = mini("cvae/tiny")
    OmegaConf.set_struct(cfg, False)
    cfg.model.latnet = 3
    with pytest.raises(ValueError, match=r"'model\.latnet'.*nearest known one is 'model\.latent'"):
        run.train(cfg, tmp_path)


def test_families_that_clip_differently_share_their_stages(
    mini: Callable[..., DictConfig],
) -> None:
    """A GAN's trainer clips nothing; its text tower is the one that latent diffusion has."""
    placed = {}
    for model, *more in (
        ("gan_int_cls/tiny",),
        ("latent_diffusion/tiny",),
        ("latent_diffusion/tiny", "trainer.gradient_clip_val=0.3"),
    ):
        cfg = mini(model, *more)
        stage, folder = stages.place(cfg, cfg.model.text, "data")
        placed[model, *more] = folder
        assert stage.trainer.gradient_clip_val == 1.0
    assert len(set(placed.values())) == 1


def test_a_stage_stands_on_the_text_tower_of_the_run(mini: Callable[..., DictConfig]) -> None:
    """AttnGAN's DAMSM reads with the tower that AttnGAN has, and another tower is another DAMSM."""
    one = mini("attngan/tiny")
    other = mini("attngan/tiny", 'text.overrides=["model.tower.context=20"]')
    places = [stages.place(cfg, cfg.model.damsm, "data") for cfg in (one, other)]
    for cfg, (stage, _) in zip((one, other), places, strict=True):
        assert to_plain(stage.model.text) == to_plain(cfg.model.text)
    assert places[0][1] != places[1][1]
