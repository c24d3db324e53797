"""Configs to objects: only names on the list, and no key that nobody reads.

A config comes from files, from a command line, or out of a checkpoint that somebody else made, so
what it may call is decided here and not there.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from salon import job

# What a config may call: our own rooms, and the few names of others that conf/ uses. A checkpoint
# may call fewer: only what a model is made of.
MODEL_ROOMS = ("models", "nn", "text", "diffusion", "losses")
ROOMS = (*MODEL_ROOMS, "data", "callbacks", "metrics", "jury")
ALLOWED = frozenset(
    {
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.LearningRateMonitor",
    }
)
TARGET, PARTIAL, STAGE = "_target_", "_partial_", "_stage_"


def build(
    node: Mapping[str, Any], where: str, *, rooms: Sequence[str] = ROOMS, **given: Any
) -> Any:
    """The object that a node describes; `given` are arguments that are already objects.

    `where` is the node's key, for messages. Raises ValueError for a name that is not allowed and
    for an argument that its constructor does not take.
    """
    plain = {key: value for key, value in to_plain(node).items() if key not in given}
    check(plain, where, given, rooms)
    return _make(plain, given)


def _make(node: Any, given: Mapping[str, Any]) -> Any:
    """Not Hydra's `instantiate`: that resolves interpolations and reads more reserved keys, which
    is more than an untrusted config may ask for."""
    if isinstance(node, list):
        return [_make(item, {}) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _make(value, {}) for key, value in node.items() if key not in (TARGET, PARTIAL)}
    if TARGET not in node:
        return made
    function = partial(_locate(node[TARGET], TARGET), **made, **given)
    return function if node.get(PARTIAL) else function()


def to_plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Dicts, lists, strings and numbers, with interpolations resolved."""
    if isinstance(node, DictConfig):
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}
    return dict(node)


def check(
    node: Any,
    where: str,
    given: Mapping[str, Any] | None = None,
    rooms: Sequence[str] = ROOMS,
) -> None:
    """Refuse names that are not allowed and arguments that nobody takes, at any depth."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            check(item, f"{where}[{i}]", None, rooms)
    if not isinstance(node, dict):
        return
    if TARGET in node:
        _check_arguments(node, where, given or {}, rooms)
    for key, value in node.items():
        if key not in (TARGET, PARTIAL):
            check(value, f"{where}.{key}", None, rooms)


def _check_arguments(
    node: dict[str, Any], where: str, given: Mapping[str, Any], rooms: Sequence[str]
) -> None:
    target = node[TARGET]
    if not _allowed(target, where, rooms):
        raise ValueError(
            f"{where}.{TARGET}={target!r} is not on the list of what a config may call here: "
            f"what salon.{{{','.join(rooms)}}} define, and {', '.join(sorted(ALLOWED))}. A "
            "checkpoint or config that asks for something else may be hostile; do not use it"
        )
    found = _locate(target, where)
    known = _parameters(found)
    for key in node:
        if key not in (TARGET, PARTIAL) and key not in known:
            raise ValueError(unknown(f"{where}.{key}", [f"{where}.{name}" for name in known]))
    if not node.get(PARTIAL):
        for name, parameter in inspect.signature(found).parameters.items():
            required = parameter.default is parameter.empty and name in known
            if required and name not in node and name not in given:
                raise ValueError(f"{where}.{name} is missing; {target} needs it")


def _allowed(target: Any, where: str, rooms: Sequence[str]) -> bool:
    if not isinstance(target, str):
        return False
    if target in ALLOWED:
        return True
    module = target.rpartition(".")[0]
    if not module.startswith(tuple(f"salon.{room}." for room in rooms)):
        return False
    # Defined there, and not only imported there.
    return str(getattr(_locate(target, where), "__module__", "")) == module


def _parameters(target: Any) -> list[str]:
    """What a constructor takes, with what it hands on to its base class by **keywords."""
    found: list[str] = []
    for step in target.__mro__ if inspect.isclass(target) else (target,):
        own = inspect.signature(step).parameters
        found += [n for n, p in own.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    return found


def _locate(target: str, where: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{where}.{TARGET}={target!r} names nothing: {error}") from error


def unknown(key: str, known: list[str]) -> str:
    """The message for a key that nobody reads."""
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    hint = f"; the nearest known one is {nearest[0]!r}" if nearest else ""
    return f"unknown config key {key!r}{hint}. All of them: python train.py --cfg job"


def flatten(node: Any, prefix: str = "") -> list[str]:
    """Every key of a config, dotted."""
    if not isinstance(node, Mapping):
        return []
    keys = []
    for key in node:
        name = f"{prefix}{key}"
        keys.append(name)
        # The node itself, since a value may be missing or refer to one that is.
        child = node._get_node(key) if isinstance(node, DictConfig) else node[key]
        keys += flatten(child, f"{name}.")
    return keys


OmegaConf.register_new_resolver("salon.job", job.job, replace=True)
