"""The notebooks run, from the first cell to the last, in the miniature world."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT, mini_overrides

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
PLANTED = (
    "image_corrupt", "image_unrecognised", "image_too_large", "missing_caption",
    "caption_not_utf8", "json_invalid", "duplicate_key", "shard_truncated",
)  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name: str, mini_root: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    overrides = mini_overrides("latent_diffusion/tiny", mini_root)
    settings.source = f"overrides = {overrides!r}\nfolder = {str(tmp_path / 'run')!r}"
    # The cell after it names the real data; the miniature world has its own.
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    texts = [output.text for output in outputs if output.get("name") == "stdout"]
    check = {"01_first_steps.ipynb": first_steps, "02_the_stream.ipynb": the_stream}[name]
    check(tmp_path / "run", pictures, texts)


def first_steps(folder: Path, pictures: int, texts: list[str]) -> None:
    assert pictures >= 4
    assert (folder / "summary.json").exists()


def the_stream(folder: Path, pictures: int, texts: list[str]) -> None:
    assert pictures >= 13
    # What was planted is named, each once, and apart from what the filter left out. 21 are good:
    # 12 of the sound shard, 5 of the spoilt one, 4 before the cut.
    report = json.loads((folder / "data_report.json").read_text())
    dropped = report["sources"]["train"]["dropped"]
    counts = {reason: each["count"] for reason, each in dropped.items()}
    assert counts == {**dict.fromkeys(PLANTED, 1), "filter:watermark": 3}
    assert (report["used"], report["bad"], report["filtered"]) == (21, 8, 3)
    # One sample in twenty has no score, and of the six cut pictures some are filtered unread.
    (told,) = [text for text in texts if "data/bad_fraction" in text]
    metrics = json.loads(told)
    assert metrics["data/filtered/aesthetic_missing"] == 24
    assert 0 < metrics["data/bad/image_corrupt"] < 6
    # The order, by 2 and by 4 ranks; that of a run that goes on is asserted in the notebook.
    assert sum(text.count("the same sequence: True") for text in texts) == 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_committed_without_outputs(name: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
