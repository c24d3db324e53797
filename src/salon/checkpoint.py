"""Checkpoints that rebuild their own model.

    import salon.checkpoint
    model = salon.checkpoint.load("runs/demo")
    images = model.sample(["a red circle above a blue square"], seeds=[0])

A checkpoint is Lightning's, loaded with `weights_only`, plus what `recipe` wrote: the resolved
config of the model with its stages' parts in place, so that no other file is needed, except for
pretrained towers, whose weights stay where they came from.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salon import digests
from salon.config import MODEL_ROOMS, build
from salon.models.base import Trainee

VERSION = 1
LAST = Path("checkpoints") / "last.ckpt"
BEST = LAST.with_name("best.ckpt")  # of a run with callbacks.best


def recipe(model: dict[str, Any], run: dict[str, Any], stages: dict[str, str]) -> dict[str, Any]:
    """What goes into a checkpoint besides weights: plain dicts only, so `weights_only` loads it."""
    return {"version": VERSION, "model": model, "run": run, "stages": stages}


def find(path: str | Path) -> Path:
    """The checkpoint file at a path or in a run folder.

    Raises ValueError where there is none.
    """
    given = Path(path)
    found = given / LAST if given.is_dir() else given
    if not found.is_file():
        runs = sorted(str(p.parent.parent) for p in Path("runs").glob(f"*/{LAST}"))
        there = f" Runs that have one: {', '.join(runs[-5:])}." if runs else ""
        raise ValueError(
            f"checkpoint={str(path)!r}: no checkpoint there; expected a .ckpt file or a run folder "
            f"with {LAST} in it.{there} To train one: python train.py"
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """The checkpoint's contents, on the CPU; nothing in it is executed.

    Raises ValueError for a file that is not a checkpoint of ours.
    """
    file = find(path)
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"checkpoint={str(file)!r} cannot be read as plain weights ({str(error)[:200]}); "
            "expected a file that train.py wrote"
        ) from error
    if not isinstance(contents, dict) or "salon" not in contents:
        raise ValueError(f"checkpoint={str(file)!r} holds no recipe; expected one of train.py's")
    return contents


def load(path: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> Any:
    """The model in a checkpoint file or run folder, ready to use, with averaged weights if any.

    Raises ValueError for a missing or unreadable file, and for one whose config names something
    that is not allowed.
    """
    contents = read(path)
    model: Trainee = build(contents["salon"]["model"], "model", rooms=MODEL_ROOMS)
    model.recipe = contents["salon"]
    load_weights(model, contents["state_dict"], str(path))
    if ema and "ema" in contents:
        average = contents["ema"]["average"]
        model.averaged.load_state_dict(average, strict=False)  # type: ignore[union-attr]
    return model.eval().to(device)


def load_weights(model: Trainee, state: dict[str, torch.Tensor], path: str) -> None:
    """Strict, but for the parts whose weights lie elsewhere."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith(tuple(model.elsewhere() or ["\0"]))]
    if missing or unexpected:
        raise ValueError(
            f"checkpoint={path!r} does not fit the model that its own config builds: "
            f"{len(missing)} weights are missing and {len(unexpected)} are too many, such as "
            f"{(missing + unexpected)[0]!r}. It was written by another version of salon"
        )


def device_of(name: str) -> torch.device:
    """Of a setting: a name of torch's, or "auto": a GPU where there is one."""
    there = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if there else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name!r}: expected auto, cpu, cuda or cuda:0 ({error})"
        ) from error
    if device.type == "cuda" and not there:
        raise ValueError(f"device={name!r}: torch sees no GPU here; say device=cpu or device=auto")
    return device


def digest_of(module: nn.Module) -> str:
    """Ten hex digits for a module's weights and buffers, whatever device they are on."""
    return digests.digest(module.state_dict())


def digest(path: str | Path) -> str:
    """The sha256 of a checkpoint file, 64 hex digits."""
    with find(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
