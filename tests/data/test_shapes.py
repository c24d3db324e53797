"""The embedded data set as it lies on disk: layout, bytes, identity, held-out compositions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from reading import CAPTION, READING
from salon.data import shapes
from salon.data.module import ShapesData
from salon.data.shapes import ShapesSettings, prepare
from salon.shapes import world
from salon.shapes.render import render

COUNTS = {"train": 40, "val": 10, "test": 10, "heldout": 12}
SETTINGS = ShapesSettings(
    resolution=32, seed=3, samples=COUNTS, shard_size=16, phrasings=3, pairs=0.5
)
SMALL = SETTINGS._replace(resolution=8, samples=dict.fromkeys(COUNTS, 2))
STREAM = {
    "batch_size": 2, "val_samples": 4, "seed": 0, "lanes": 1, "window": 4, "workers": 0,
    **READING,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("shapes"), SETTINGS)


def records(folder: Path, split: str) -> Iterator[tuple[np.ndarray, str, dict[str, Any]]]:
    """Picture, caption and json of every sample of a split, read by tarfile."""
    for shard in sorted((folder / split).glob("*.tar")):
        with tarfile.open(shard, "r:") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for key in sorted({name.partition(".")[0] for name in members}):
            picture = np.asarray(Image.open(io.BytesIO(members[f"{key}.png"])))
            yield picture, members[f"{key}.txt"].decode(), json.loads(members[f"{key}.json"])


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_split_lies_as_img2dataset_would_leave_it(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*COUNTS, "dataset.json"}
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(
        f"{shard:05d}{ending}"
        for shard in range(3)
        for ending in (".tar", ".parquet", "_stats.json")
    )
    sizes = []
    for shard in ("00000", "00001", "00002"):
        with tarfile.open(folder / "train" / f"{shard}.tar", "r:") as tar:
            names = tar.getnames()
        keys = [f"{shard}{place:04d}" for place in range(len(names) // 3)]
        assert names == [f"{key}.{kind}" for key in keys for kind in ("json", "png", "txt")]
        stats = json.loads((folder / "train" / f"{shard}_stats.json").read_text())
        assert stats["successes"] == stats["count"] == len(keys)
        assert stats["status_dict"] == {"success": len(keys)}
        table = pq.read_table(folder / "train" / f"{shard}.parquet")
        assert {"key", "caption", "status", "width", "height", "sha256"} <= set(table.column_names)
        assert table.column("key").to_pylist() == keys
        sizes.append(len(keys))
    assert sizes == [16, 16, 8]


def test_plain_webdataset_reads_it(folder: Path) -> None:
    shards = sorted(str(path) for path in (folder / "train").glob("*.tar"))
    read = list(wds.WebDataset(shards, shardshuffle=False).decode("pil"))
    direct = list(records(folder, "train"))
    assert len(read) == len(direct) == 40
    for sample, (picture, caption, told) in zip(read, direct, strict=True):
        assert sample["__key__"] == told["key"]
        assert sample["txt"] == caption == told["caption"] == told["captions"][0]
        assert np.array_equal(np.asarray(sample["png"]), picture)
        assert len(told["captions"]) == 3


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = prepare(tmp_path, SETTINGS._replace(samples=dict(reversed(COUNTS.items()))))
    assert again.name == folder.name
    first, second = everything(folder), everything(again)
    assert len(first) == 6 * 3 + 1
    assert first == second


def test_another_seed_gives_other_pictures_and_captions(folder: Path, tmp_path: Path) -> None:
    other = prepare(tmp_path, SETTINGS._replace(seed=4))
    assert other.name != folder.name
    for split in COUNTS:
        pairs = list(zip(records(folder, split), records(other, split), strict=True))
        assert any(not np.array_equal(ours[0], theirs[0]) for ours, theirs in pairs)
        assert [ours[1] for ours, _ in pairs] != [theirs[1] for _, theirs in pairs]


def test_splits_share_no_picture(folder: Path) -> None:
    seen = [told["sha256"] for split in COUNTS for _, _, told in records(folder, split)]
    assert len(set(seen)) == len(seen) == sum(COUNTS.values())


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 33},
        {"seed": 4},
        {"samples": COUNTS | {"test": 11}},
        {"shard_size": 17},
        {"phrasings": 2},
        {"pairs": 0.25},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_is_part_of_the_identity(change: dict[str, Any]) -> None:
    assert SETTINGS._replace(**change).identity != SETTINGS.identity


def test_the_version_of_the_world_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SETTINGS.identity
    monkeypatch.setattr(world, "VERSION", world.VERSION + 1)
    assert SETTINGS.identity != before


def test_nothing_else_is_part_of_the_identity(tmp_path: Path) -> None:
    def data(root: str = "here", **changes: Any) -> ShapesData:
        return ShapesData(
            root=str(tmp_path / root), world_seed=3, samples=COUNTS, shard_size=16, phrasings=3,
            pairs=0.5, resolution=32, **STREAM | changes,
        )  # fmt: skip

    others = [
        data("there"),
        *(data(**{name: STREAM[name] + 1}) for name in set(STREAM) - set(READING)),
    ]
    assert {other.identity for other in others} == {data().identity}
    # What a sample becomes is a part of it: a text tower that read other captions is another one.
    changed = [
        data(caption=CAPTION._replace(keys=("json:captions",))), data(crop="random"),
        data(filters=[{"name": "few", "field": "objects", "max": 1, "missing": "keep"}]),
    ]  # fmt: skip
    assert len({data().identity, *(other.identity for other in changed)}) == 4
    assert not list(tmp_path.iterdir()), "telling the identity renders nothing"


def test_an_interrupted_render_leaves_nothing_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def breaks(*arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(shapes, "render", breaks)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, SMALL)
    assert not (tmp_path / f"shapes-{SMALL.identity}").exists()
    assert list(tmp_path.glob(".*.partial")), "it was interrupted in the middle"

    folder = prepare(tmp_path, SMALL)
    monkeypatch.undo()
    assert everything(folder) == everything(prepare(tmp_path / "whole", SMALL))
    assert not list(tmp_path.glob(".*.partial"))


def test_two_processes_at_once_render_it_once(tmp_path: Path) -> None:
    # Each says that it is ready, waits for the other, and is slow to render.
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from salon.data import shapes
        root, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        write, calls = shapes._write_all, []
        def slow(*arguments):
            calls.append(1)
            time.sleep(0.5)
            write(*arguments)
        shapes._write_all = slow
        Path(me).touch()
        while not Path(other).exists():
            time.sleep(0.01)
        settings = shapes.ShapesSettings(8, 3, dict.fromkeys(shapes.SPLITS, 2), 16, 3, 0.5)
        print("RESULT", len(calls), shapes.prepare(root, settings), len(calls))
    """)
    ready = [str(tmp_path / "a"), str(tmp_path / "b")]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "data"), *names],
            stdout=subprocess.PIPE,
            text=True,
        )
        for names in (ready, ready[::-1])
    ]
    told = [run.communicate(timeout=120)[0].strip().splitlines()[-1].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    folder = str(tmp_path / "data" / f"shapes-{SMALL.identity}")
    assert [line[2] for line in told] == [folder, folder]
    assert sorted(line[3] for line in told) == ["0", "1"]
    assert not list((tmp_path / "data").glob("*.partial"))
    assert not list((tmp_path / "data").glob(".*.partial"))


def test_held_out_compositions_stand_in_heldout_only(folder: Path) -> None:
    for split, count in COUNTS.items():
        found = [told for _, _, told in records(folder, split)]
        assert len(found) == count
        for told in found:
            scene = world.Scene.from_json(told["scene"])
            assert world.held_out(scene) == told["held_out"]
            assert bool(told["held_out"]) == (split == "heldout")


def test_the_json_tells_exactly_what_the_picture_shows(folder: Path) -> None:
    several = set()
    for picture, _, told in records(folder, "train"):
        scene = world.Scene.from_json(told["scene"])
        assert np.array_equal(render(scene, 32), picture)
        assert told["width"] == told["height"] == 32
        several.add(len(scene.objects))
        ground = np.array(world.BACKGROUNDS[scene.background], float)
        for item, box in zip(scene.objects, told["boxes"], strict=True):
            # How much of this object's color a pixel has, looked for where it alone can be.
            color = np.array(world.COLORS[item.color], float) - ground
            share = (picture - ground) @ color / (color @ color)
            left, top, right, bottom = (int(32 * edge) for edge in item.box)
            alone = np.zeros_like(share, dtype=bool)
            alone[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = True
            # Colors are rounded to 8 bits, so half a pixel is known to a hundredth.
            outer, inner = (_box(alone & (share > limit)) for limit in (0.49, 0.51))
            assert all(outer[i] <= box[i] <= inner[i] for i in (0, 1))
            assert all(inner[i] <= box[i] <= outer[i] for i in (2, 3))
    assert several == {1, 2}


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_what_a_caption_asks_is_true_and_a_prompt_leaves_nothing_open(folder: Path) -> None:
    left_open = 0
    for split in COUNTS:
        for _, caption, told in records(folder, split):
            scene = world.Scene.from_json(told["scene"])
            truth = {(o.shape, o.color, o.size): o.position for o in scene.objects}
            for text, asked in (
                (caption, told["asked"]),
                (told["prompt"]["caption"], told["prompt"]["asked"]),
            ):
                assert asked["background"] in (None, scene.background)
                for o in asked["objects"]:
                    assert o["color"] in text
                    assert o["shape"] in text
                    match = [k for k in truth if k[:2] == (o["shape"], o["color"])]
                    assert len(match) == 1
                    assert o["size"] in (None, match[0][2])
                    assert o["position"] in (None, truth[match[0]])
            asked = told["prompt"]["asked"]
            assert asked["background"] == scene.background
            assert asked["background"] in told["prompt"]["caption"]
            assert all(o["size"] for o in asked["objects"])
            if len(asked["objects"]) == 1:
                assert asked["objects"][0]["position"]
            else:
                assert asked["relation"] in (scene.relation, world.INVERSE[scene.relation])
            left_open += told["asked"] != asked
    assert left_open > 0, "captions do leave things open; else the prompt proves nothing"


def test_a_folder_that_cannot_be_written_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"data\.root='.*/file/below' cannot be written"):
        prepare(tmp_path / "file" / "below", SMALL)


@pytest.mark.parametrize(
    "samples", [COUNTS | {"val": 0}, {"train": 4}, COUNTS | {"extra": 3}], ids=str
)
def test_splits_that_are_not_the_four_are_refused(samples: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.samples=.*train, val, test, heldout"):
        ShapesData(
            root=str(tmp_path), world_seed=0, samples=samples, shard_size=4, phrasings=1, pairs=0.5,
            resolution=8, **STREAM,
        )  # fmt: skip


@pytest.mark.parametrize(("pairs", "expected"), [(0.25, 10), (0.0, 0), (1.0, 40), (0.7, 28)])
def test_the_share_of_pairs(tmp_path: Path, pairs: float, expected: int) -> None:
    folder = prepare(tmp_path, SETTINGS._replace(resolution=8, pairs=pairs))
    counts = [len(json.loads(record)["scene"]["objects"]) for record in _jsons(folder, "train")]
    assert (len(counts), counts.count(2)) == (40, expected)
    # Spread evenly: any ten in a row have their share.
    for first in range(0, 40, 10):
        assert abs(counts[first : first + 10].count(2) - 10 * pairs) <= 1


def _jsons(folder: Path, split: str) -> Iterator[bytes]:
    for path in sorted((folder / split).glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    yield tar.extractfile(member).read()  # type: ignore[union-attr]


def test_a_share_beyond_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.pairs=1\.5: expected a share"):
        ShapesData(
            root=str(tmp_path), world_seed=0, samples=COUNTS, shard_size=4, phrasings=1, pairs=1.5,
            resolution=8, **STREAM,
        )  # fmt: skip
