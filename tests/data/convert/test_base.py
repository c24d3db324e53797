"""The writer: layout, bytes, interruption, what fails and what must not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from salon.data.convert.base import BadItem, Item, Source, convert, failures
from salon.data.convert.sources import SETTINGS, SOURCES, source
from tars import encode, noise


class Made(Source):
    """Noise pictures of three formats; `broken` maps a place in train to what happens there."""

    name, licence = "made", "none; it is made up"

    def __init__(self, *, broken: dict[int, Any] | None = None, train: int = 10) -> None:
        self.broken = broken or {}
        self.settings = {"seed": 0}
        self.entries = {"train": range(train), "val": range(100, 103), "test": []}

    def item(self, split: str, index: int) -> Item:
        number = self.entries[split][index]
        what = self.broken.get(number)
        if isinstance(what, BaseException):
            raise what
        if what is not None:
            return Item(what, (f"noise {number}",), {})
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        picture = encode(noise(number, 9, 7), kind)
        return Item(picture, (f"noise {number}", f"more noise {number}"), {"number": number})


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_split_lies_as_img2dataset_would_leave_it(tmp_path: Path) -> None:
    assert convert(Made(), tmp_path, shard_size=4, splits=None) == {"train": 10, "val": 3}
    assert set(everything(tmp_path)) == {
        "dataset.json",
        *(f"train/{shard:05d}{end}" for shard in range(3)
          for end in (".tar", ".parquet", "_stats.json")),
        *(f"val/00000{end}" for end in (".tar", ".parquet", "_stats.json")),
    }  # fmt: skip
    with tarfile.open(tmp_path / "train" / "00002.tar", "r:") as tar:
        assert tar.getnames() == [
            "000020000.json", "000020000.txt", "000020000.webp",
            "000020001.json", "000020001.png", "000020001.txt",
        ]  # fmt: skip
        assert {(m.mtime, m.uname, m.gname) for m in tar} == {(0, "salon", "salon")}
    stats = json.loads((tmp_path / "train" / "00002_stats.json").read_text())
    assert (stats["count"], stats["successes"]) == (2, 2)
    told = json.loads((tmp_path / "dataset.json").read_text())
    assert told["samples"] == {"train": 10, "val": 3}
    assert told["licence"] == "none; it is made up"


def test_bytes_are_copied_and_captions_and_meta_are_kept(
    tmp_path: Path, read_back: Callable[..., Any]
) -> None:
    made = Made()
    convert(made, tmp_path, shard_size=4, splits=["train"])
    back = read_back(tmp_path, "train", 7)
    assert len(back) == 10
    for index, (pixels, caption, told, members) in enumerate(back):
        item = made.item("train", index)
        assert item.picture in members.values()
        assert caption == item.captions[0]
        assert told["captions"] == list(item.captions)
        assert told["number"] == index
        assert (told["width"], told["height"], told["original_width"]) == (9, 7, 9)
        assert isinstance(item.picture, bytes)
        whole = np.asarray(Image.open(io.BytesIO(item.picture)).convert("RGB"))
        assert np.array_equal(pixels, whole[:, 1:8])
    assert not (tmp_path / "val").exists()


def test_an_image_is_written_as_png(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    gray = noise(5).convert("L")
    convert(Made(broken={3: gray}), tmp_path, shard_size=100, splits=["train"])
    back = read_back(tmp_path, "train", 8)[3]
    assert np.array_equal(Image.open(io.BytesIO(back.members["png"])), np.asarray(gray))
    # Others are 9 wide, and their eight columns were cut and resized.
    assert np.array_equal(back.pixels, np.asarray(gray.convert("RGB")))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    broken = {2: b"<html>", 5: BadItem("gone"), 6: FileNotFoundError(2, "No such file", "/a/b")}
    for name in ("one", "two"):
        convert(Made(broken=broken), tmp_path / name, shard_size=4, splits=None)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert len(everything(tmp_path / "one")) == 13


@pytest.mark.parametrize("place", [0, 3, 4, 6, 9])
def test_an_interrupted_conversion_goes_on_to_the_same_bytes(tmp_path: Path, place: int) -> None:
    convert(Made(), tmp_path / "whole", shard_size=4, splits=None)
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        convert(Made(broken={place: KeyboardInterrupt()}), out, shard_size=4, splits=None)
    done = {path.name for path in (out / "train").glob("*_stats.json")}
    assert done == {f"{shard:05d}_stats.json" for shard in range(place // 4)}
    assert len(list((out / "train").glob("*.tar"))) == place // 4

    class Counting(Made):
        seen: list[int] = []  # noqa: RUF012

        def item(self, split: str, index: int) -> Item:
            if split == "train":
                self.seen.append(index)
            return super().item(split, index)

    Counting.seen = []
    assert convert(Counting(), out, shard_size=4, splits=None) == {"train": 10, "val": 3}
    assert Counting.seen == list(range(place // 4 * 4, 10)), "finished shards are not made again"
    assert everything(out) == everything(tmp_path / "whole")


def test_a_shard_without_its_stats_is_made_again(tmp_path: Path) -> None:
    convert(Made(), tmp_path, shard_size=4, splits=None)
    before = everything(tmp_path)
    (tmp_path / "train" / "00001.tar").write_bytes(b"half")
    (tmp_path / "train" / "00001_stats.json").unlink()
    convert(Made(), tmp_path, shard_size=4, splits=None)
    assert everything(tmp_path) == before


def test_splits_can_be_made_one_after_another(tmp_path: Path) -> None:
    convert(Made(), tmp_path / "whole", shard_size=4, splits=None)
    assert convert(Made(), tmp_path / "two", shard_size=4, splits=["val"]) == {"val": 3}
    assert convert(Made(), tmp_path / "two", shard_size=4, splits=["train"]) == {"train": 10}
    assert everything(tmp_path / "two") == everything(tmp_path / "whole")


def test_another_conversion_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    convert(Made(), tmp_path, shard_size=4, splits=None)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"shard_size=4 and is now.*5.*Choose another folder"):
        convert(Made(), tmp_path, shard_size=5, splits=None)
    with pytest.raises(ValueError, match=r"samples=.*Choose another folder"):
        convert(Made(train=11), tmp_path, shard_size=4, splits=None)
    other = Made()
    other.settings = {"seed": 1}
    with pytest.raises(ValueError, match=r"settings=.*Choose another folder"):
        convert(other, tmp_path, shard_size=4, splits=None)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r"Choose another folder"):
        convert(Made(), tmp_path, shard_size=4, splits=None)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"shards of something else"):
        convert(Made(), tmp_path, shard_size=4, splits=None)
    assert {k: v for k, v in before.items() if "/" in k} == everything(tmp_path)


def test_what_cannot_be_read_is_counted_and_told(
    tmp_path: Path, read_back: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    jpeg = encode(noise(1, 64, 64), "JPEG")
    broken = {
        0: b"", 1: b"<html>not found</html>", 2: jpeg[: len(jpeg) // 2], 3: encode(noise(1), "GIF"),
        4: BadItem("the file name leaves the folder"),
        5: FileNotFoundError(2, "No such file or directory", "/home/somebody/5.png"),
    }  # fmt: skip
    assert convert(Made(broken=broken), tmp_path, shard_size=8, splits=["train"]) == {"train": 4}
    assert [b.told["number"] for b in read_back(tmp_path, "train", 7)] == [6, 7, 8, 9]
    table = pq.read_table(tmp_path / "train" / "00000.parquet").to_pylist()
    assert [row["key"] for row in table] == [f"00000000{i}" for i in range(8)]
    assert [row["status"] for row in table] == ["failed"] * 6 + ["success"] * 2
    why = [row["error_message"] for row in table]
    assert why[0] == why[1] == why[3] == "not a JPEG, PNG or WebP picture"
    assert "truncated" in why[2]
    assert why[4:] == [
        "the file name leaves the folder", "No such file or directory", None, None,
    ]  # fmt: skip
    stats = json.loads((tmp_path / "train" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_resize"]) == (8, 2, 6)
    found = failures(tmp_path)["train"]
    assert sum(found.values()) == 6
    assert found["not a JPEG, PNG or WebP picture"] == 3
    assert "6 of 10 pictures failed" in caplog.text


@pytest.mark.parametrize("captions", [(), ("", "  \n")], ids=str)
def test_a_picture_without_a_caption_fails(tmp_path: Path, captions: tuple[str, ...]) -> None:
    class Silent(Made):
        def item(self, split: str, index: int) -> Item:
            item = super().item(split, index)
            return item._replace(captions=captions) if index == 1 else item

    assert convert(Silent(), tmp_path, shard_size=8, splits=["val"]) == {"val": 2}
    assert failures(tmp_path) == {"val": {"no caption": 1}}


@pytest.mark.parametrize("bug", [TypeError("bug"), KeyError("bug"), AttributeError("bug")])
def test_a_bug_is_not_a_bad_picture(tmp_path: Path, bug: Exception) -> None:
    with pytest.raises(type(bug), match=r"bug"):
        convert(Made(broken={1: bug}), tmp_path, shard_size=4, splits=None)


def test_a_picture_of_the_wrong_type_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        convert(Made(broken={1: "a path"}), tmp_path, shard_size=4, splits=None)


def test_when_all_fail_it_is_an_error(tmp_path: Path) -> None:
    broken = dict.fromkeys(range(10), b"<html>")
    with pytest.raises(ValueError, match=r"train: none of its 10 .*not a JPEG, PNG or WebP"):
        convert(Made(broken=broken), tmp_path, shard_size=4, splits=None)


def test_a_large_shard_has_keys_of_one_length(tmp_path: Path) -> None:
    convert(Made(train=3), tmp_path, shard_size=100_000, splits=["train"])
    assert [row["key"] for row in pq.read_table(tmp_path / "train/00000.parquet").to_pylist()] == [
        f"000000000{i}" for i in range(3)
    ]


def test_what_a_user_gets_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard_size=0"):
        convert(Made(), tmp_path, shard_size=0, splits=None)
    with pytest.raises(ValueError, match=r"splits=\['heldout'\]: made has train, val"):
        convert(Made(), tmp_path, shard_size=1, splits=["train", "heldout"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written.*Choose another"):
        convert(Made(), tmp_path / "file" / "below", shard_size=1, splits=None)
    with pytest.raises(ValueError, match=r"'flower' is no source; the nearest is 'flowers102'"):
        source("flower", tmp_path, {})
    with pytest.raises(ValueError, match=r"'val' is no setting of cub; the nearest is 'val_share'"):
        source("cub", tmp_path, {"val": 1})


def test_a_shard_that_begins_like_a_command_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert(Made(), Path("pipe:touch ran; cat >"), shard_size=20, splits=["val"])
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "pipe:touch ran; cat >" / "val" / "00000.tar").exists()


def test_every_source_has_its_settings() -> None:
    import inspect

    assert set(SOURCES) == set(SETTINGS)
    for name, made in SOURCES.items():
        parameters = list(inspect.signature(made).parameters.values())
        assert {p.name for p in parameters[1:]} == set(SETTINGS[name])
        assert all(p.default is p.empty for p in parameters)
