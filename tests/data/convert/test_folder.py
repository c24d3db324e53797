"""A folder of pictures: every form of captions, splits, and names that try to leave it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from salon.data.convert.base import Source, convert, failures
from salon.data.convert.sources import source
from tars import encode, noise

ALL = {"val_share": 0.0, "test_share": 0.0}


def picture(path: Path, number: int, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise(number), kind))
    return path


def opened(root: Path, **settings: Any) -> Source:
    return source("folder", root, ALL | settings)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def told(out: Path, split: str, read_back: Callable[..., Any]) -> dict[str, list[str]]:
    return {b.told["file_name"]: b.told["captions"] for b in read_back(out, split, 8)}


def test_captions_beside_the_pictures(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    root = tmp_path / "in"
    for number, (name, kind) in enumerate(
        [("a.png", "PNG"), ("b.c.JPG", "JPEG"), ("deep/er/d.webp", "WEBP")]
    ):
        picture(root / name, number, kind).with_suffix(".txt").write_text(f"caption {number}\n")
    picture(root / "uncaptioned.png", 9)
    picture(root / "._a.png", 9)
    (root / "notes.pdf").write_bytes(b"no picture")
    assert convert(opened(root), tmp_path / "out", shard_size=8, splits=None) == {"train": 3}
    back = read_back(tmp_path / "out", "train", 8)
    assert [(b.told["file_name"], b.caption) for b in back] == [
        ("a.png", "caption 0"), ("b.c.JPG", "caption 1"), ("deep/er/d.webp", "caption 2"),
    ]  # fmt: skip
    assert np.array_equal(back[0].pixels, noise(0))
    assert back[1].members["jpg"] == (root / "b.c.JPG").read_bytes()
    assert failures(tmp_path / "out") == {"train": {"no such file": 1}}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_captions_in_a_table(ending: str, tmp_path: Path, read_back: Callable[..., Any]) -> None:
    root = tmp_path / "in"
    for number in range(2):
        picture(root / "images" / f"{number}.png", number)
    rows = [
        {"file_name": "images/0.png", "text": 'a "red" one, über', "n": 0.5, "original_width": 9},
        {"file_name": "images/1.png", "text": "another", "n": float("nan"), "original_width": 9},
        {"file_name": "images/0.png", "text": "the first again", "n": 0.5, "original_width": 9},
        {"file_name": "images/2.png", "text": "absent", "n": 0.1, "original_width": 9},
    ]  # fmt: skip
    write_table(root / f"metadata.{ending}", rows)
    assert convert(opened(root), tmp_path / "out", shard_size=8, splits=None) == {"train": 2}
    first, second = read_back(tmp_path / "out", "train", 8)
    assert first.told["captions"] == ['a "red" one, über', "the first again"]
    assert np.array_equal(first.pixels, noise(0))
    assert np.array_equal(second.pixels, noise(1))
    assert second.told["captions"] == ["another"]
    # Other columns are for filters; a NaN is no json.
    assert first.told["n"] == ("0.5" if ending == "csv" else 0.5)
    assert first.told["original_width"] == ("9" if ending == "csv" else 9)
    assert second.told["n"] == ("nan" if ending == "csv" else None)
    assert first.told["width"] == 8


def test_the_names_of_table_and_columns_can_be_set(
    tmp_path: Path, read_back: Callable[..., Any]
) -> None:
    root = tmp_path / "in"
    picture(root / "0.png", 0)
    write_table(root / "results.csv", [{"image": "0.png", "comment": "a caption", "text": "other"}])
    columns = {"table": "results.csv", "file_column": "image", "caption_column": "comment"}
    convert(opened(root, **columns), tmp_path / "out", shard_size=8, splits=None)
    assert told(tmp_path / "out", "train", read_back) == {"0.png": ["a caption"]}
    with pytest.raises(ValueError, match=r"columns image, comment, text; expected file_column=fil"):
        opened(root, table="results.csv")
    with pytest.raises(ValueError, match=r"expected.*caption_column=said"):
        opened(root, table="results.csv", file_column="image", caption_column="said")
    with pytest.raises(ValueError, match=r"table='absent.csv': no such file"):
        opened(root, table="absent.csv")


def test_a_list_of_captions_is_several(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    picture(tmp_path / "in" / "0.png", 0)
    write_table(tmp_path / "in" / "metadata.jsonl", [{"file_name": "0.png", "caption": ["a", "b"]}])
    convert(opened(tmp_path / "in"), tmp_path / "out", shard_size=8, splits=None)
    assert told(tmp_path / "out", "train", read_back) == {"0.png": ["a", "b"]}


def test_folders_become_splits_and_others_are_cut_off(
    tmp_path: Path, read_back: Callable[..., Any]
) -> None:
    root = tmp_path / "in"
    for number in range(40):
        picture(root / "train" / f"{number}.png", number)
    rows = [{"file_name": f"{n}.png", "text": f"{n}"} for n in range(40)]
    write_table(root / "train" / "metadata.jsonl", rows)
    picture(root / "validation" / "a.png", 50).with_suffix(".txt").write_text("in val")
    made = opened(root, val_share=0.3, test_share=0.3)
    assert made.count("val") == 1
    assert 5 <= made.count("test") <= 19
    assert made.count("train") + made.count("test") == 40
    convert(made, tmp_path / "out", shard_size=50, splits=None)
    assert told(tmp_path / "out", "val", read_back) == {"validation/a.png": ["in val"]}
    for split in ("train", "test"):
        for name, (caption,) in told(tmp_path / "out", split, read_back).items():
            assert name == f"train/{caption}.png"


def test_a_picture_keeps_its_split_when_others_come(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(60)]

    def splits(names: list[str]) -> dict[str, str]:
        folder = tmp_path / str(len(names))
        folder.mkdir()
        write_table(folder / "metadata.jsonl", [{"file_name": n, "text": n} for n in names])
        made = opened(folder, val_share=0.2, test_share=0.2)
        return {entry.name: s for s in made.splits for entry in made.entries[s]}

    few, many = splits(names[20:50]), splits(names)
    assert set(few.values()) == {"train", "val", "test"}
    assert few.items() <= many.items()


def test_names_cannot_leave_the_folder(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    root = tmp_path / "in"
    picture(root / "good.png", 0)
    secret = picture(tmp_path / "secret.png", 1)
    picture(tmp_path / "in-not" / "x.png", 1)  # its name begins like the root's
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    (root / "circle.png").symlink_to(root / "circle.png")
    (root / "inner.png").symlink_to(root / "good.png")
    names = [
        "../secret.png", "../../etc/passwd", "/etc/passwd", str(secret), "link.png",
        "up/secret.png", "sub/../../secret.png", "../in-not/x.png", "circle.png", "nul\0.png",
        "half\ud800.png", "x" * 300 + ".png", "", ".", "absent.png", "good.png", "inner.png",
    ]  # fmt: skip
    write_table(root / "metadata.jsonl", [{"file_name": n, "text": "a caption"} for n in names])
    out = tmp_path / "out"
    assert convert(opened(root), out, shard_size=50, splits=None) == {"train": 2}
    assert set(told(out, "train", read_back)) == {"good.png", "inner.png"}
    assert secret.read_bytes() not in (out / "train" / "00000.tar").read_bytes()
    found = failures(out)["train"]
    assert found["the file name leaves the folder"] == 8
    assert sum(found.values()) == len(names) - 2


def test_a_caption_cannot_come_from_outside(tmp_path: Path) -> None:
    root = tmp_path / "in"
    picture(root / "good.png", 0).with_suffix(".txt").write_text("fine")
    picture(root / "bad.png", 1)
    (tmp_path / "secret.txt").write_text("secret")
    (root / "bad.txt").symlink_to(tmp_path / "secret.txt")
    assert convert(opened(root), tmp_path / "out", shard_size=5, splits=None) == {"train": 1}
    assert failures(tmp_path / "out") == {"train": {"the file name leaves the folder": 1}}


def test_bad_captions_are_failed_pictures(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for number, content in enumerate([b"fine", b"\xff\xfe\x00", b"  "]):
        picture(root / f"{number}.png", number).with_suffix(".txt").write_bytes(content)
    assert convert(opened(root), tmp_path / "out", shard_size=5, splits=None) == {"train": 1}
    assert failures(tmp_path / "out") == {"train": {"the caption is not UTF-8": 1, "no caption": 1}}
    write_table(
        root / "metadata.jsonl",
        [{"file_name": "0.png", "text": t} for t in ("half \ud800", None, 3)]
        + [{"file_name": "1.png", "text": None}, {"file_name": "2.png", "text": "fine"}],
    )
    assert convert(opened(root), tmp_path / "two", shard_size=5, splits=None) == {"train": 1}
    assert sum(failures(tmp_path / "two")["train"].values()) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "a"}\n{"file',
            "metadata.jsonl:2 is no",
        ),
        ("metadata.jsonl", b"[1]\n", "metadata.jsonl:1: expected an object"),
        ("metadata.jsonl", b"[" * 200_000, "metadata.jsonl:1 is no json"),
        ("metadata.jsonl", b"\xff", "is not UTF-8"),
        ("metadata.jsonl", b"", "expected file_column=file_name"),
        ("metadata.csv", b'file_name,text\na.png,"open', "metadata.csv is no csv"),
        ("metadata.parquet", b"PAR1 no", "is no parquet file"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        opened(tmp_path)


def test_a_folder_without_captions_says_what_is_expected(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match=r"no picture with a caption.*\.txt.*metadata\.jsonl"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder"):
        opened(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"val_share=0\.5.*leave something for train"):
        opened(tmp_path, val_share=0.5, test_share=0.5)


def test_other_captions_are_another_data_set(tmp_path: Path) -> None:
    root = tmp_path / "in"
    picture(root / "0.png", 0)
    write_table(root / "metadata.jsonl", [{"file_name": "0.png", "text": "one"}])
    convert(opened(root), tmp_path / "out", shard_size=5, splits=None)
    write_table(root / "metadata.jsonl", [{"file_name": "0.png", "text": "two"}])
    with pytest.raises(ValueError, match=r"settings=.*Choose another folder"):
        convert(opened(root), tmp_path / "out", shard_size=5, splits=None)
