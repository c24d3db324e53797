"""`python -m salon.data`: shards are checked, and made of what lies on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tars import encode, folder_of, good, noise, write_shard


def door(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "salon.data", *words], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}, check=False,
    )  # fmt: skip


def dirty(folder: Path, bad: int) -> Path:
    folder.mkdir()
    samples = [good(i) for i in range(18)]
    samples += [(f"bad{i}", {"png": b"", "txt": b"x"}) for i in range(bad)]
    write_shard(folder / "a [1].tar", samples)  # a name that is a pattern, too
    return folder


def test_check_tells_what_is_bad_and_what_is_filtered_and_writes_it_down(tmp_path: Path) -> None:
    shards = dirty(tmp_path / "shards", bad=2)
    filters = 'data.filters=[{name: first, field: key, none_of: ["00000"], missing: keep}]'
    done = door("check", str(shards), "decode=false", filters, "out=told.json", cwd=tmp_path)
    assert done.returncode == 1, "2 of 19 are more than a tenth"
    assert "bad: image_empty" in done.stdout
    assert "filter:first" in done.stdout
    report = json.loads((tmp_path / "told.json").read_text())
    assert (report["used"], report["bad"], report["filtered"]) == (17, 2, 1)


def test_check_passes_what_training_would_take(tmp_path: Path) -> None:
    shards = folder_of(tmp_path / "six", shards=2, each=5)
    done = door("check", f"{shards}/{{00000..00001}}.tar", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "data_report.json").read_text())["used"] == 10
    more = door("check", str(shards), "data.image.min_side=9", cwd=tmp_path)
    assert more.returncode == 1
    assert "image_too_small" in more.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "nowhere"], "data.train='nowhere': no shard there"),
        (["check", "data.filtres=[]"], "filters"),
        (["convert", "fodler", ".", "out"], "the nearest is 'folder'"),
        (["convert", "folder", ".", "out", "shard_size=many"], "shard_size='many': expected a int"),
        (["convert", "folder"], "usage"),
        (["chekc"], "usage"),
    ],
)
def test_mistakes_are_messages(words: list[str], says: str, tmp_path: Path) -> None:
    done = door(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_is_converted_checked_and_found_finished(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(encode(noise(i)))
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"noise {i}")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "broken.txt").write_text("broken")
    words = ("convert", "folder", "pictures", "out", "val_share=0", "test_share=0", "shard_size=4")
    done = door(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 6 samples, 1 could not be read" in done.stdout
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out" / "train").iterdir()}
    assert door(*words, cwd=tmp_path).returncode == 0
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out" / "train").iterdir()}
    assert after == before
    assert door("check", "out/train", cwd=tmp_path).returncode == 0
