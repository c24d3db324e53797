"""Which code a run was of."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from salon import versions


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-C", str(folder), *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    return tmp_path


def test_a_checkout_has_a_commit_and_may_be_dirty(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not git's")
    told = versions.versions()
    assert (told["git_commit"], told["git_dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    assert told["torch"].startswith("2.")
    assert set(told) == {"salon", "torch", "lightning", "wandb", "git_commit", "git_dirty"}
    (checkout / "file.py").write_text("2")
    assert versions.versions()["git_dirty"] is True


def test_somebody_elses_checkout_above_is_not_ours(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "site-packages").mkdir()
    monkeypatch.setattr(versions, "ROOT", checkout / "site-packages")
    told = versions.versions()
    assert (told["git_commit"], told["git_dirty"]) == (None, None)


@pytest.mark.parametrize("how", ["hangs", "missing"])
def test_a_git_that_hangs_or_is_not_there(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "bin").mkdir()
    if how == "hangs":
        (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
        (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(versions, "PATIENCE", 0.5)
    began = time.monotonic()
    told = versions.versions()
    assert (told["git_commit"], told["git_dirty"]) == (None, None)
    assert time.monotonic() - began < 20
