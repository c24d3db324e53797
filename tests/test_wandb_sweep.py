"""conf/wandb_sweep.yaml, as an agent of W&B Sweeps turns it into command lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hydra import compose
from wandb.sdk.launch.sweeps import utils

from conftest import ROOT
from salon.config import to_plain

RECIPE = yaml.safe_load((ROOT / "conf" / "wandb_sweep.yaml").read_text())


def values(parameter: dict[str, Any]) -> list[Any]:
    """All of them, or the ends of a range."""
    if "value" in parameter:
        return [parameter["value"]]
    return list(parameter.get("values") or (parameter["min"], parameter["max"]))


def commands() -> list[dict[str, Any]]:
    """So many that each value is in one of them."""
    all_values = {name: values(told) for name, told in RECIPE["parameters"].items()}
    number = max(map(len, all_values.values()))
    return [{name: v[i % len(v)] for name, v in all_values.items()} for i in range(number)]


def overrides(chosen: dict[str, Any]) -> list[str]:
    """The words behind train.py."""
    told = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in chosen.items()}})
    words: list[str] = []
    for word in utils.create_sweep_command(list(RECIPE["command"])):
        macro = word[2:-1] if word.startswith("${") else None
        words += told.get(macro, [] if macro else [word])
    return words


@pytest.mark.parametrize("chosen", commands(), ids=str)
def test_every_command_composes_and_says_what_was_chosen(
    hydra_conf: None, chosen: dict[str, Any]
) -> None:
    words = overrides(chosen)
    assert len(words) == len(chosen) + 2, "each parameter, and what the command adds"
    cfg = compose("train", words)
    for name, value in chosen.items():
        if name != "model":
            node: Any = to_plain(cfg)
            for step in name.split("."):
                node = node[step]
            assert node == value, name
    assert cfg.logger.mode == "online"
    assert cfg.budget.validate_every == 500


def test_every_family_is_the_one_that_was_chosen(hydra_conf: None) -> None:
    targets = {
        compose("train", overrides({**commands()[0], "model": model})).model["_target_"]
        for model in RECIPE["parameters"]["model"]["values"]
    }
    assert len(targets) == len(RECIPE["parameters"]["model"]["values"])


def test_it_is_a_sweep_that_wandb_takes() -> None:
    assert utils.load_sweep_config(str(ROOT / "conf" / "wandb_sweep.yaml")) == RECIPE
    assert (ROOT / RECIPE["program"]).is_file()
    assert RECIPE["metric"] == {"name": "quality/prompt_accuracy", "goal": "maximize"}
