"""Published data sets: a miniature of each, in the layout in which its authors publish it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from salon.data.convert import small
from salon.data.convert.base import convert, failures
from salon.data.convert.flower_names import FLOWERS
from salon.data.convert.sources import SETTINGS, source
from tars import encode, noise

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def digits(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), np.uint8)


def fashion_mnist(root: Path, *, zipped: bool = True) -> Path:
    root.mkdir(parents=True)
    for seed, (prefix, count) in enumerate((("train", 60), ("t10k", 10))):
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", digits(seed, count)), ("labels-idx1", labels)):
            head = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
            content = head + values.tobytes()
            name = f"{prefix}-{kind}-ubyte" + (".gz" if zipped else "")
            (root / name).write_bytes(gzip.compress(content) if zipped else content)
    return root


def cifar10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "batches.meta.txt").write_text(names.replace(" ", "\n") + "\n\n")
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        planes = np.random.default_rng(number).integers(0, 256, (8, 3072), np.uint8)
        labels = (np.arange(8) + number).astype(np.uint8)[:, None] % 10
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels, planes], 1).tobytes())
    return root


def flowers102(root: Path) -> Path:
    (root / "jpg").mkdir(parents=True)
    for number in range(1, 13):
        (root / "jpg" / f"image_{number:05d}.jpg").write_bytes(encode(noise(number), "JPEG"))
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]])})
    parts = {"trnid": [[1, 5, 9]], "valid": [[2, 6, 10]], "tstid": [[3, 4, 7, 8, 11, 12]]}
    savemat(root / "setid.mat", parts)
    return root


def cub(root: Path) -> Path:
    root = root / "CUB_200_2011"
    files = [f"{bird}/{bird[4:]}_{n:04d}.jpg" for bird in BIRDS for n in range(1, 5)]
    for number, file in enumerate(files):
        (root / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / file).write_bytes(encode(noise(number), "JPEG"))

    def write(name: str, rows: list[str]) -> None:
        (root / name).write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, start=1)))

    write("images.txt", files)
    write("classes.txt", list(BIRDS))
    write("image_class_labels.txt", [str(1 + i // 4) for i in range(12)])
    write("train_test_split.txt", [str(i % 2) for i in range(12)])
    write("bounding_boxes.txt", [f"{i}.0 2.0 3.0 4.5" for i in range(12)])
    return root.parent


def coco(root: Path) -> Path:
    (root / "annotations").mkdir(parents=True)
    for start, (part, count) in ((100, ("train", 30)), (10, ("val", 4))):
        (root / f"{part}2017").mkdir()
        images, said = [], []
        for number in reversed(range(start, start + count)):
            name = f"{number:012d}.jpg"
            (root / f"{part}2017" / name).write_bytes(encode(noise(number), "JPEG"))
            images.append({"id": number, "file_name": name, "license": 4})
            for i in reversed(range(5)):
                said.append({"image_id": number, "id": 9 * number + i, "caption": f"{number}-{i} "})
        licences = [{"id": 4, "name": "Attribution License", "url": "http://example.org/by"}]
        told = {"images": images, "annotations": said, "licenses": licences, "info": {}}
        (root / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(told))
    return root


MINIATURES = {
    "fashion_mnist": fashion_mnist, "cifar10": cifar10, "flowers102": flowers102, "cub": cub,
    "coco": coco,
}  # fmt: skip


@pytest.mark.parametrize("name", MINIATURES)
def test_same_bytes_from_another_place(name: str, tmp_path: Path) -> None:
    for place in ("a", "b"):
        made = source(name, MINIATURES[name](tmp_path / place / "in"), {})
        counts = convert(made, tmp_path / place / "out", shard_size=7, splits=None)
        assert counts == {split: made.count(split) for split in made.splits}
        assert failures(tmp_path / place / "out") == {split: {} for split in made.splits}
    files = [p for p in (tmp_path / "a" / "out").rglob("*") if p.is_file() and p.name != ".lock"]
    assert len(files) > 4
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist(
    zipped: bool, below: str, tmp_path: Path, read_back: Callable[..., Any]
) -> None:
    fashion_mnist(tmp_path / "in" / below if below else tmp_path / "in", zipped=zipped)
    made = source("fashion_mnist", tmp_path / "in", {"val_share": 0.2})
    counts = convert(made, tmp_path / "out", shard_size=100, splits=None)
    assert counts["train"] + counts["val"] == 60
    assert 4 <= counts["val"] <= 24
    assert counts["test"] == 10
    seen = []
    for split in counts:
        for pixels, caption, told, _ in read_back(tmp_path / "out", split, 28):
            place = told["index"]
            expected = digits(told["part"] == "test", 60)[place]
            assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, 2))
            name, noun = list(small.GARMENTS.items())[place % 10]
            assert told["class"] == name
            assert len(set(told["captions"])) == 4
            assert all(noun in text for text in (caption, *told["captions"]))
            seen.append((told["part"], place))
    assert sorted(seen) == [("test", i) for i in range(10)] + [("train", i) for i in range(60)]
    first = {b.caption.replace(small.GARMENTS[b.told["class"]], "{}")
             for b in read_back(tmp_path / "out", "train", 28)}  # fmt: skip
    assert first == set(small.FashionMNIST.TEMPLATES), "every template comes first somewhere"


def test_a_share_says_which_are_val_and_changes_no_caption(tmp_path: Path) -> None:
    root = fashion_mnist(tmp_path / "in")
    few, more = (source("fashion_mnist", root, {"val_share": s}) for s in (0.1, 0.3))
    assert set(few.entries["val"]) < set(more.entries["val"])
    first, second = (
        {s.entries["train"][i]: s.item("train", i).captions for i in range(s.count("train"))}
        for s in (few, more)
    )
    assert second.items() < first.items()


def test_cifar10_without_a_pickle(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    root = cifar10(tmp_path / "in")
    made = source("cifar10", root, {"val_share": 0.2})
    counts = convert(made, tmp_path / "out", shard_size=100, splits=None)
    assert counts["test"] == 8
    assert counts["train"] + counts["val"] == 40
    assert counts["val"] > 0
    for split in counts:
        for pixels, caption, told, _ in read_back(tmp_path / "out", split, 32):
            batch, place = divmod(told["index"], 8)
            batch = 5 if told["part"] == "test" else batch
            planes = np.random.default_rng(batch).integers(0, 256, (8, 3072), np.uint8)
            red, green, blue = planes[place].reshape(3, 32, 32)
            assert np.array_equal(pixels, np.stack([red, green, blue], 2))
            name = made.classes[(place + batch) % 10]  # type: ignore[attr-defined]
            assert told["class"] == name
            article = "an" if name[0] == "a" else "a"
            assert f"{article} {name}" in caption


def test_a_label_beyond_the_classes_is_a_failed_picture(tmp_path: Path) -> None:
    root = cifar10(tmp_path / "in")
    batch = root / "cifar-10-batches-bin" / "test_batch.bin"
    batch.write_bytes(b"\x0a" + batch.read_bytes()[1:])
    convert(source("cifar10", root, {}), tmp_path / "out", shard_size=9, splits=["test"])
    assert failures(tmp_path / "out") == {"test": {"a label beyond the 10 classes": 1}}


def test_flowers_with_class_names(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    made = source("flowers102", flowers102(tmp_path / "in"), {})
    assert convert(made, tmp_path / "out", shard_size=9, splits=None) == {
        "train": 3, "val": 3, "test": 6,
    }  # fmt: skip
    for split in made.splits:
        for _, caption, told, members in read_back(tmp_path / "out", split, 8):
            number = int(told["file_name"][10:15])
            assert members["jpg"] == encode(noise(number), "JPEG")
            name = ("pink primrose", "hard-leaved pocket orchid", "canterbury bells")[
                (number - 1) // 4
            ]
            assert told["class"] == name
            assert name in caption
    (tmp_path / "names").write_text("uno\ndue\ntre\n")
    named = source("flowers102", tmp_path / "in", {"names": tmp_path / "names"})
    assert "uno" in named.item("train", 0).captions[0]
    (tmp_path / "names").write_text("uno\ndue\n")
    with pytest.raises(ValueError, match=r"2 names for labels from 1 to 3"):
        source("flowers102", tmp_path / "in", {"names": tmp_path / "names"})


def test_the_names_of_the_flowers() -> None:
    """Places that are easily confused; labels as Oxford's page counts them."""
    assert len(FLOWERS) == len(set(FLOWERS)) == 102
    from torchvision.datasets import Flowers102

    published = getattr(Flowers102, "classes", None)  # newer torchvision only
    if published:
        different = [(a, b) for a, b in zip(FLOWERS, published, strict=True) if a != b]
        assert different == [
            ("barberton daisy", "barbeton daisy"), ("pink-yellow dahlia", "pink-yellow dahlia?"),
        ]  # fmt: skip
    places = {1: "pink primrose", 12: "colt's foot", 51: "petunia", 102: "blackberry lily"}
    assert {place: FLOWERS[place - 1] for place in places} == places


def reed_flowers(folder: Path) -> Path:
    for number in range(1, 13):
        label = (number - 1) // 4 + 1
        path = folder / "text_c10" / f"class_{label:05d}" / f"image_{number:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"flower {number}, caption {i}\n" for i in range(10)))
    return folder


@pytest.mark.parametrize("inner", ["", "text_c10"])
def test_flowers_with_captions_and_class_lists(
    inner: str, tmp_path: Path, read_back: Callable[..., Any]
) -> None:
    root, reed = flowers102(tmp_path / "in"), reed_flowers(tmp_path / "reed")
    settings = {"captions": reed / inner, "val_share": 0.5}
    official = source("flowers102", root, settings)
    assert [official.count(split) for split in ("train", "val", "test")] == [3, 3, 6]
    (reed / "trainvalclasses.txt").write_text("class_00001\nclass_00003\n")
    (reed / "testclasses.txt").write_text("class_00002\n")
    made = source("flowers102", root, settings)
    convert(made, tmp_path / "out", shard_size=9, splits=None)
    seen = {}
    for split in made.splits:
        for back in read_back(tmp_path / "out", split, 8):
            number = int(back.told["file_name"][10:15])
            assert back.told["captions"] == [f"flower {number}, caption {i}" for i in range(10)]
            seen.setdefault(split, set()).add(back.told["label"])
    assert seen["test"] == {2}
    assert seen["train"] | seen["val"] == {1, 3}
    assert made.count("train") + made.count("val") == 8
    (reed / "valclasses.txt").write_text("class_00003\n")
    listed = source("flowers102", root, settings)
    assert {p.label for p in listed.entries["train"]} == {1}
    assert {p.label for p in listed.entries["val"]} == {3}
    (reed / "testclasses.txt").write_text("class_00001\nclass_00002\n")
    with pytest.raises(ValueError, match=r"class_00001 is also in train"):
        source("flowers102", root, settings)
    (reed / "testclasses.txt").write_text("class_00004\n")
    with pytest.raises(ValueError, match=r"class_00002 is in none of"):
        source("flowers102", root, settings)


def test_cub_in_its_own_layout(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    made = source("cub", cub(tmp_path / "in"), {"val_share": 0.3})
    counts = convert(made, tmp_path / "out", shard_size=9, splits=None)
    assert counts["test"] == 6
    assert counts["train"] + counts["val"] == 6
    names = ("black footed albatross", "laysan albatross", "sooty albatross")
    for split in counts:
        for _, caption, told, members in read_back(tmp_path / "out", split, 8):
            at = told["image_id"] - 1
            assert (split == "test") == (at % 2 == 0)
            assert members["jpg"] == encode(noise(at), "JPEG")
            assert told["class"] == names[at // 4]
            assert told["class"] in caption
            assert told["bounding_box"] == [at, 2.0, 3.0, 4.5]
            assert told["file_name"].startswith(f"images/{BIRDS[at // 4]}/")


def test_cub_with_captions_and_class_lists(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    root, reed = cub(tmp_path / "in"), tmp_path / "cvpr2016_cub"
    for path in sorted((root / "CUB_200_2011" / "images").rglob("*.jpg"))[:-1]:
        text = reed / "text_c10" / path.parent.name / f"{path.stem}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"{path.stem} says {i}\n" for i in range(10)))
    for name, bird in (("train", BIRDS[0]), ("val", BIRDS[1]), ("test", BIRDS[2])):
        (reed / f"{name}classes.txt").write_text(bird + "\n")
    (reed / "filenames.pickle").write_bytes(b"never opened")
    made = source("cub", root, {"captions": reed})
    assert convert(made, tmp_path / "out", shard_size=9, splits=None) == {
        "train": 4, "val": 4, "test": 3,
    }  # fmt: skip
    assert failures(tmp_path / "out")["test"] == {"no such file": 1}
    for split, bird in zip(("train", "val", "test"), BIRDS, strict=True):
        for back in read_back(tmp_path / "out", split, 8):
            stem = Path(back.told["file_name"]).stem
            assert stem.startswith(bird[4:])
            assert back.told["captions"] == [f"{stem} says {i}" for i in range(10)]


def test_names_in_published_files_cannot_leave_the_folder(tmp_path: Path) -> None:
    root = cub(tmp_path / "cub")
    (tmp_path / "cub" / "secret.jpg").write_bytes(encode(noise(0), "JPEG"))
    listed = root / "CUB_200_2011" / "images.txt"
    rows = listed.read_text().splitlines()
    rows[0], rows[2] = "1 ../../secret.jpg", f"3 {tmp_path / 'cub' / 'secret.jpg'}"
    listed.write_text("\n".join(rows))
    made = source("cub", root, {})
    assert convert(made, tmp_path / "out", shard_size=9, splits=["test"]) == {"test": 4}
    assert failures(tmp_path / "out") == {"test": {"the file name leaves the folder": 2}}

    root = coco(tmp_path / "coco")
    path = root / "annotations" / "captions_val2017.json"
    path.write_text(
        path.read_text().replace('"000000000010.jpg"', '"../train2017/000000000100.jpg"')
    )
    convert(source("coco", root, {}), tmp_path / "two", shard_size=9, splits=["val"])
    assert failures(tmp_path / "two") == {"val": {"the file name leaves the folder": 1}}


def test_coco(tmp_path: Path, read_back: Callable[..., Any]) -> None:
    made = source("coco", coco(tmp_path / "in"), {"test_share": 0.3})
    counts = convert(made, tmp_path / "out", shard_size=9, splits=None)
    assert counts["val"] == 4
    assert counts["train"] + counts["test"] == 30
    assert 3 <= counts["test"] <= 16
    for split in counts:
        numbers = []
        for back in read_back(tmp_path / "out", split, 8):
            number = back.told["image_id"]
            assert back.members["jpg"] == encode(noise(number), "JPEG")
            assert back.told["captions"] == [f"{number}-{i}" for i in range(5)]
            assert back.told["licence"]["name"] == "Attribution License"
            assert (number < 100) == (split == "val")
            numbers.append(number)
        assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("name", "file", "home"),
    [
        ("fashion_mnist", "t10k-labels-idx1-ubyte.gz", "Zalando Research"),
        ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", "cifar.html), the binary version"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", "kriz/cifar.html"),
        ("flowers102", "setid.mat", "Oxford VGG"),
        ("flowers102", "imagelabels.mat", "Oxford VGG"),
        ("cub", "CUB_200_2011/images.txt", "Caltech"),
        ("cub", "CUB_200_2011/bounding_boxes.txt", "Caltech"),
        ("coco", "annotations/captions_val2017.json", "cocodataset.org"),
    ],
)
def test_a_missing_file_is_named_with_its_home(
    name: str, file: str, home: str, tmp_path: Path
) -> None:
    root = MINIATURES[name](tmp_path / "in")
    (root / file).unlink()
    with pytest.raises(ValueError, match=f"{Path(file).name} is missing") as caught:
        source(name, root, {})
    assert home in str(caught.value)
    assert "set root to its folder" in str(caught.value)
    with pytest.raises(ValueError, match=r"is missing"):
        source(name, tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("fashion_mnist", "train-images-idx3-ubyte.gz", "is no whole idx file"),
        ("cifar10", "cifar-10-batches-bin/data_batch_3.bin", "no multiple of 3,073"),
        ("flowers102", "setid.mat", "is no Matlab file"),
        ("cub", "CUB_200_2011/image_class_labels.txt", "image_class_labels.txt"),
        ("coco", "annotations/captions_val2017.json", "is no COCO captions file"),
    ],
)
def test_a_file_that_was_cut_is_named(name: str, file: str, expected: str, tmp_path: Path) -> None:
    path = MINIATURES[name](tmp_path / "in") / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=expected):
        source(name, tmp_path / "in", {})


def test_captions_that_are_not_there_are_named(tmp_path: Path) -> None:
    root = flowers102(tmp_path / "in")
    with pytest.raises(ValueError, match=r"nowhere is missing.*Reed.*set captions"):
        source("flowers102", root, {"captions": tmp_path / "nowhere"})


def test_pictures_and_labels_that_differ_in_number(tmp_path: Path) -> None:
    root = fashion_mnist(tmp_path / "in", zipped=False)
    path = root / "train-labels-idx1-ubyte"
    path.write_bytes(struct.pack(">II", 0x0801, 59) + bytes(59))
    with pytest.raises(ValueError, match=r"60 pictures and .* 59 labels"):
        source("fashion_mnist", root, {})


def test_files_are_fetched_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, fetched = fashion_mnist(tmp_path / "there"), []

    def fetch(url: str, root: str, *, md5: str) -> None:
        name = url.removeprefix(small.FashionMNIST.URL)
        fetched.append((name, md5))
        Path(root).mkdir(exist_ok=True)
        (Path(root) / name).write_bytes((there / name).read_bytes())

    monkeypatch.setattr(small, "download_url", fetch)
    with pytest.raises(ValueError, match=r"is missing"):
        source("fashion_mnist", tmp_path / "here", {})
    assert not fetched
    assert source("fashion_mnist", tmp_path / "here", {"download": True}).count("test") == 10
    assert sorted(fetched) == sorted((f"{n}.gz", md5) for n, md5 in small.IDX_MD5.items())
    source("fashion_mnist", tmp_path / "here", {"download": True})
    assert len(fetched) == 4, "what is there is not fetched again"

    def fails(url: str, root: str, *, md5: str) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(small, "download_and_extract_archive", fails)
    with pytest.raises(ValueError, match=r"download=true: .*cifar-10-binary.* cannot be fetched"):
        source("cifar10", tmp_path / "none", {"download": True})


def test_nothing_is_fetched_by_default() -> None:
    assert not any(s["download"].default for s in SETTINGS.values() if "download" in s)
