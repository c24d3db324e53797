"""Features are computed once, and only what is whole and of the asked protocol is believed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from salon.jury import features
from salon.jury.features import FeatureStore
from salon.metrics import extractors

N, E = 7, 3
ASKED = {"extractor": "toy none float32 0123456789", "split": "val", "number": N}


class Maker:
    """Features in batches of 3, counted."""

    def __init__(self, *, count: int = N) -> None:
        self.calls, self.count = 0, count

    def __call__(self) -> Iterator[Tensor]:
        self.calls += 1
        yield from values()[: self.count].split(3)


def values() -> Tensor:
    return torch.randn(N, E, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "deep" / "features")


def test_computed_once(store: FeatureStore, caplog: pytest.LogCaptureFixture) -> None:
    make, done = Maker(), list[int]()
    first = store.features(ASKED, make, progress=done.append)
    again = FeatureStore(store.folder).features(dict(reversed(ASKED.items())), make)
    assert make.calls == 1
    assert done == [3, 3, 1]
    assert torch.equal(first, values())
    assert torch.equal(again, first)
    assert again.dtype == torch.float32
    assert not caplog.records
    with np.load(store.path(ASKED), allow_pickle=False) as contents:
        assert json.loads(str(contents["protocol"])) == ASKED


@pytest.mark.parametrize(
    "change", [{"split": "test"}, {"extractor": "other"}, {"number": N - 1}, {"ema": True}]
)
def test_another_protocol_is_another_file(store: FeatureStore, change: dict[str, Any]) -> None:
    store.features(ASKED, Maker())
    other = ASKED | change
    make = Maker(count=other["number"])  # type: ignore[arg-type]
    store.features(other, make)
    assert make.calls == 1
    assert len(list(store.folder.glob("*.npz"))) == 2


def damaged(store: FeatureStore, kind: str) -> None:
    """What may lie where the features should."""
    file = store.path(ASKED)
    whole = file.read_bytes()
    told = np.array(json.dumps(ASKED, sort_keys=True))
    if kind == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "flipped":
        place = whole.index(values().numpy().tobytes()[:8])
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "array":
        with file.open("wb") as stream:
            np.save(stream, values().numpy())
    elif kind == "other":
        other = np.array(json.dumps(ASKED | {"split": "test"}, sort_keys=True))
        np.savez(file, features=values().numpy() + 1, protocol=other)
    elif kind == "double":
        np.savez(file, features=values().double().numpy() + 1, protocol=told)
    elif kind == "short":
        np.savez(file, features=values().numpy()[:2], protocol=told)
    elif kind == "nan":
        np.savez(file, features=values().numpy() * np.float32("nan"), protocol=told)
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind", ["cut", "flipped", "empty", "array", "other", "double", "short", "nan"]
)
def test_what_cannot_be_trusted_is_computed_anew(
    store: FeatureStore, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.features(ASKED, Maker())
    damaged(store, kind)
    make = Maker()
    assert torch.equal(store.features(ASKED, make), values())
    assert make.calls == 1
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert str(store.path(ASKED)) in said.getMessage()
    store.features(ASKED, make)
    assert make.calls == 1  # mended


class Hostile:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("place", ["features", "protocol"])
def test_a_pickled_payload_is_not_run(store: FeatureStore, tmp_path: Path, place: str) -> None:
    file, proof = store.path(ASKED), tmp_path / "executed"
    file.parent.mkdir(parents=True)
    arrays = {"features": values().numpy(), "protocol": np.array(json.dumps(ASKED, sort_keys=True))}
    arrays[place] = np.array([Hostile(proof)], dtype=object)
    np.savez(file, **arrays)  # type: ignore[arg-type]
    make = Maker()
    assert torch.equal(store.features(ASKED, make), values())
    assert make.calls == 1
    assert not proof.exists()


def test_an_error_halfway_leaves_nothing(store: FeatureStore) -> None:
    def broken() -> Iterator[Tensor]:
        yield values()[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.features(ASKED, broken)
    assert not list(store.folder.glob("*.npz*"))
    assert torch.equal(store.features(ASKED, Maker()), values())  # and nothing stays locked


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (values()[:5], r"\(5, 3\), but \(7, E\)"),
        (values().flatten(), r"\(21,\), but \(7, E\)"),
        (values() / 0, "NaN or infinity"),
    ],
)
def test_what_is_made_is_looked_at(store: FeatureStore, made: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        store.features(ASKED, lambda: iter([made]))
    assert not list(store.folder.glob("*.npz*"))


def test_nothing_made_at_all(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match=r"but \(7, E\) was expected"):
        store.features(ASKED, lambda: iter([]))


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    make = Maker()
    with pytest.raises(ValueError, match=r"features=.*cannot be written.*another"):
        FeatureStore(tmp_path / "file").features(ASKED, make)
    assert make.calls == 0


def test_a_full_disk_loses_no_features(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert torch.equal(store.features(ASKED, Maker()), values())
    assert "No space left" in caplog.text
    assert not store.path(ASKED).exists()


# -- with real processes -----------------------------------------------------------------------

CHILD = """
import sys, time
from pathlib import Path
import torch
from salon.jury.features import FeatureStore
folder, calls, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def make():
    with calls.open("a") as stream:
        stream.write("called\\n")
    for row in torch.arange(21.0).view(7, 1, 3):
        time.sleep(pause)
        yield row
made = FeatureStore(folder).features({"number": 7}, make)
assert torch.equal(made, torch.arange(21.0).view(7, 3))
"""


def child(tmp_path: Path, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "kept"), str(tmp_path / "calls"), str(pause)]
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_processes_compute_once(tmp_path: Path) -> None:
    running = [child(tmp_path, pause=0.2) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert (tmp_path / "calls").read_text() == "called\n"


def test_a_killed_process_leaves_nothing_half(tmp_path: Path) -> None:
    first = child(tmp_path, pause=30)
    wait_for(tmp_path / "calls")
    os.kill(first.pid, signal.SIGKILL)
    first.wait(60)
    assert not list((tmp_path / "kept").glob("*.npz"))
    assert child(tmp_path, pause=0).wait(120) == 0
    assert (tmp_path / "calls").read_text() == "called\n" * 2


# -- protocols ---------------------------------------------------------------------------------

DRAWN: dict[str, Any] = {
    "checkpoint_sha256": "ab" * 32, "prompts": ["a", "b"], "seeds": [0, 1],
    "settings": {"steps": 8}, "ema": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_sha256": "cd" * 32}, {"prompts": ["b", "a"]}, {"seeds": [1, 0]},
        {"settings": {"steps": 9}}, {"ema": False},
    ],
)  # fmt: skip
def test_everything_that_changes_drawn_images_is_in_the_protocol(change: dict[str, Any]) -> None:
    assert features.drawn_set(**DRAWN) == features.drawn_set(**DRAWN)
    assert features.drawn_set(**DRAWN) != features.drawn_set(**DRAWN | change)


def test_a_seed_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        features.drawn_set(**DRAWN | {"seeds": [0]})


def test_the_build_of_a_library_is_not_in_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.metadata, "version", lambda name: "2.15.0+cpu")
    extractor = extractors.random_conv(seed=0, features=E)
    real = features.real_set(data="shapes", split="val", number=N)
    assert features.protocol(extractor, real, size=8)["libraries"]["torch"] == "2.15.0"


def test_from_images_to_a_file(store: FeatureStore) -> None:
    extractor = extractors.random_conv(seed=0, features=E)
    images = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8)
    real = features.real_set(data="shapes", split="val", number=N)
    asked = features.protocol(extractor, real, size=8)
    assert asked["extractor"] == extractor.identity
    assert set(asked["libraries"]) == {"torch", "open_clip_torch", "timm"}

    def make() -> Iterator[Tensor]:
        return features.extract(extractor, images.split(4))

    found = store.features(asked, make)
    assert torch.allclose(found, extractor(images), atol=1e-6)
    others = [
        features.protocol(extractors.random_conv(seed=1, features=E), real, size=8),
        features.protocol(extractor, real, size=16),
        features.protocol(extractor, features.real_set(data="x", split="val", number=N), size=8),
    ]
    assert len({store.path(p) for p in [asked, *others]}) == 4
