"""Which code this is: versions, and the commit where it is a git checkout."""

from __future__ import annotations

import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import salon

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; else somewhere among the packages
PATIENCE = 5.0  # seconds for git, which may wait for a lock or a network drive


def versions() -> dict[str, Any]:
    """`git_commit` and `git_dirty` are None where there is no checkout, or git does not answer."""
    told: dict[str, Any] = {"salon": salon.__version__}
    for name in ("torch", "lightning", "wandb"):
        told[name] = metadata.version(name)
    told["git_commit"] = _git(ROOT, "rev-parse", "HEAD")
    # What git does not know of, as data and notes, changes no code that it knows of.
    changed = _git(ROOT, "status", "--porcelain", "--untracked-files=no")
    told["git_dirty"] = None if changed is None else bool(changed)
    return told


def _git(root: Path, *words: str) -> str | None:
    if not (root / ".git").exists():  # a folder above may be somebody else's checkout
        return None
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True,
            stdin=subprocess.DEVNULL, timeout=PATIENCE, env=env,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
