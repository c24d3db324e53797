"""Shards that mean harm, among good ones, from the config to the batch.

Every case is read by `check` and trained on as `data=shards` is by default; what is bad is left out
under its reason, and what is good comes. This file is also a program: it reads bombs, so that the
memory they take is that of a process of its own.
"""

from __future__ import annotations

import gzip
import http.server
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from salon.config import build
from salon.data.check import check
from salon.types import Batch
from tars import encode, noise

ROOT = Path(__file__).resolve().parents[2]
Named = tuple[str, bytes]


def shards_data(shards: Sequence[str], *overrides: str, batch: int = 1) -> Any:
    """The data module of `data=shards`, with conf's own limits."""
    given = [
        f"data.train={json.dumps(list(shards))}", f"data.val={json.dumps(list(shards))}",
        "data.resolution=8", "data.workers=0", "data.lanes=1", "data.window=9",
        f"batch_size={batch}", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return build(compose("train", ["data=shards", *given]).data, "data")


def counted(data: Any, folder: Path) -> tuple[int, dict[str, int]]:
    """How many samples are good in one reading, and how many are left out for each reason."""
    check(data, split="train", decode=True, out=folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    dropped = report["sources"]["train"]["dropped"] if report["sources"] else {}
    return report["used"], {reason: told["count"] for reason, told in dropped.items()}


def trained(data: Any, batches: int) -> tuple[list[Batch], set[str]]:
    """The first batches, and for which reasons samples were left out on the way to them."""
    stream = iter(data.train_dataloader())
    found = [data.on_before_batch_transfer(next(stream), 0) for _ in range(batches)]
    return found, {reason for _, reason in data.tally.dropped}


def write(path: Path, members: Sequence[Named | tarfile.TarInfo]) -> str:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for one in members:
            info, content = (one, b"") if isinstance(one, tarfile.TarInfo) else (None, one[1])
            if info is None:
                info = tarfile.TarInfo(one[0])  # type: ignore[index]
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def sample(
    key: str, picture: bytes | None = None, kind: str = "png", **more: bytes | None
) -> list[Named]:
    """The members of a good sample, but for what is told; None leaves one out."""
    members = {
        kind: encode(noise(0)) if picture is None else picture, "txt": key.encode(),
        "json": b'{"score": 9}', **more,
    }  # fmt: skip
    return [(f"{key}.{name}", content) for name, content in members.items() if content is not None]


# -- samples ---------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def scored(key: str, value: str) -> list[Named]:
    return sample(key, json=f'{{"score": {value}}}'.encode())


def link(name: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return made


def frames(kind: str) -> bytes:
    return encode(noise(1), kind, save_all=True, append_images=[noise(2)], lossless=True)


def flat(width: int, height: int) -> bytes:
    return encode(Image.new("L", (width, height), 255))


@dataclass
class Case:
    members: list[Any]
    bad: dict[str, int] = field(default_factory=dict)  # reason -> how many
    good: dict[str, str] = field(default_factory=dict)  # key -> caption
    overrides: tuple[str, ...] = ()


LONG = "name " * 60 + "end"
NAMES = ("../../up", "/etc/absolute", "v1.2/img.0001", "a b  c", "画像 ☃ é", LONG)
SCORE = "data.filters=[{name: score, field: score, min: 5, missing: drop}]"
GIF = "data.image.formats=[JPEG,PNG,WEBP,GIF]"
CASES = {
    "the bytes decide, not the name": Case(
        [*sample("a", encode(noise(0), "WEBP"), "jpg"), *sample("b", encode(noise(0)), "webp"),
         *sample("c", encode(noise(0), "JPEG"), "png")],
        good={"a": "a", "b": "b", "c": "c"},
    ),
    "a gif is not read": Case(sample("a", frames("GIF"), "jpg"), {"image_unrecognised": 1}),
    "of an animation the first frame": Case(
        [*sample("a", frames("GIF"), "jpg"), *sample("b", frames("WEBP"), "webp"),
         *sample("c", frames("PNG"))],
        good={"a": "a", "b": "b", "c": "c"}, overrides=(GIF,),
    ),
    "or none of it": Case(
        [*sample("a", frames("GIF"), "jpg"), *sample("b", frames("WEBP"), "webp"),
         *sample("c", frames("PNG"))],
        {"image_animated": 3}, overrides=(GIF, "data.image.animated=reject"),
    ),
    "captions in the json": Case(
        [*sample("a", txt=None, json=b'{"caption": "told"}'), *sample("b", txt=b" \n"),
         *sample("c", txt=None, json=b'{"caption": null}'),
         *sample("d", txt=b"", json=b'{"caption": "instead"}')],
        {"missing_caption": 1, "caption_empty": 1}, {"a": "told", "d": "instead"},
        ("data.caption.keys=[txt,'json:caption']",),
    ),
    "captions of the web": Case(
        [*sample("a", txt=b"\xef\xbb\xbfa\x00cat\r\n"), *sample("b", txt="cafe\u0301".encode()),
         *sample("c", txt="שלום 👩‍👩‍👧".encode()), *sample("d", txt=b"a" * 10**6),
         *sample("e", txt="a cat".encode("utf-16"))],
        {"caption_long": 1, "caption_not_utf8": 1},
        {"a": "a cat", "b": "café", "c": "שלום 👩‍👩‍👧"},
    ),
    "keys that come twice": Case(
        [*sample("a"), *sample("b"), *sample("a"),
         ("c.png", encode(noise(0))), ("d.png", encode(noise(0))), ("c.txt", b"c"),
         ("d.txt", b"d"), ("e.PNG", encode(noise(0))), ("e.png", encode(noise(0))),
         ("e.txt", b"e")],
        {"duplicate_key": 4, "missing_caption": 3}, {"a": "a", "b": "b"},
    ),
    "names that lead elsewhere": Case(
        [("._a.png", b"fork"), ("__meta__.json", b"{}"),
         *(member for name in NAMES for member in sample(name, txt=b"named"))],
        good=dict.fromkeys(NAMES, "named"),
    ),
    "a link to a secret": Case(
        [link("a.png"), ("a.txt", b"a"), *sample("b", txt=None)[:1], link("b.txt")],
        {"member_not_plain": 2},
    ),
    "scores that are none": Case(
        [*scored("a", "NaN"), *scored("b", "Infinity"), *scored("c", "1e999"),
         *scored("d", '"high"'), *sample("e", json=b"{}"), *sample("f", json=None),
         *scored("g", "4.999"), *scored("h", "5"), *scored("i", '"5.0"')],
        {"filter:score_missing": 6, "filter:score": 1}, {"h": "h", "i": "i"}, (SCORE,),
    ),
    "jsons that are none": Case(
        [*sample("a", json=b"[" * 200_000), *sample("b", json=b'{"a":' * 200_000),
         *sample("c", json=b'[{"score": 9}]'), *sample("d", json=b"{'score': 9}"),
         *sample("e", json=b'{"score": ' + b"9" * 100_000 + b"}"),
         *sample("f", json=b" " * 2**20 + b"{}")],
        {"json_invalid": 4, "json_not_object": 1, "json_too_large": 1}, {}, (SCORE,),
    ),
    "proportions": Case(
        [*sample("a", flat(1, 1)), *sample("b", flat(5000, 20)), *sample("c", flat(10_000, 1)),
         *sample("d", flat(1, 10_000)), *sample("e", flat(10_001, 1))],
        {"image_aspect": 1}, {key: key for key in "abcd"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_bad_is_told_and_what_is_good_is_trained_on(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    members = [*sample("first"), *case.members, *sample("last")]
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    shard = write(tmp_path / "a.tar", members)
    good = {"first": "first", "last": "last", **case.good}
    data = shards_data([shard], *case.overrides)
    assert counted(data, tmp_path) == (len(good), case.bad)
    batches, reasons = trained(data, 3 * len(good) + 9)  # three passes, and a window
    assert {batch.keys[0]: batch.captions[0] for batch in batches} == good
    assert reasons == set(case.bad)
    for batch in batches:
        assert batch.images.shape == (1, 3, 8, 8)
        assert batch.images.isfinite().all()
    after = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    assert after - before == {Path(shard), tmp_path / "report.json"}, "no member is written"


def test_the_first_frame_is_what_comes(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.tar", [*sample("a", frames("WEBP"), "webp")])
    ((batch,), _) = trained(shards_data([shard]), 1)
    expected = torch.from_numpy(np.asarray(noise(1), np.float32) / 127.5 - 1).permute(2, 0, 1)
    torch.testing.assert_close(batch.images[0], expected, atol=1e-6, rtol=0)


def test_a_key_may_stand_in_two_shards(tmp_path: Path) -> None:
    """At the end of one and the beginning of the next: two samples, and not one of both."""
    shards = [
        write(tmp_path / "0.tar", [*sample("a"), *sample("same", txt=b"one")]),
        write(tmp_path / "1.tar", [*sample("same", txt=b"other"), *sample("b")]),
    ]
    data = shards_data(shards, "data.window=4", batch=4)
    assert counted(data, tmp_path) == (4, {})
    ((batch,), _) = trained(data, 1)
    assert Counter(batch.captions) == Counter(["a", "one", "other", "b"])


def test_nothing_that_a_shard_holds_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles under every name that webdataset would unpickle, and in the place of members."""
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **_: started.append(a))
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    objects = io.BytesIO()
    np.save(objects, np.array([Payload(tmp_path / "ran")], object), allow_pickle=True)
    tensors = io.BytesIO()
    torch.save(Payload(tmp_path / "ran"), tensors)
    odd = {
        "pkl": payload, "pyd": payload, "pickle": payload, "pyd.gz": gzip.compress(payload),
        "npy": objects.getvalue(), "npz": objects.getvalue(), "pth": tensors.getvalue(),
        "cls": payload, "id": b"no number", "index": payload, "inx": payload, "h5": b"\x89HDF",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "mp4": bytes(3000),
        "gz": gzip.compress(payload), "json.gz": gzip.compress(payload), "ten": payload,
    }  # fmt: skip
    members = [
        *sample("odd", None, "png", **odd), *[(f"only.{name}", odd[name]) for name in odd],
        *sample("picture", payload), *sample("eps", odd["eps"], "jpg"),
        *sample("text", txt=payload), *sample("json", json=payload),
    ]  # fmt: skip
    shard = write(tmp_path / "a.tar", [*sample("first"), *members, *sample("last")])
    data = shards_data([shard], SCORE)
    bad = {"image_unrecognised": 2, "caption_not_utf8": 1, "json_invalid": 1}
    assert counted(data, tmp_path) == (3, bad)
    batches, reasons = trained(data, 20)
    assert {batch.keys[0] for batch in batches} == {"first", "odd", "last"}
    assert reasons == set(bad)
    assert not (tmp_path / "ran").exists()
    assert not started
    pickle.loads(payload)
    assert (tmp_path / "ran").exists(), "the payload works, so its silence says something"


# -- bombs, and shards that are none ---------------------------------------------------------------


def header(name: bytes, size: bytes, flag: bytes, extra: bytes = b"") -> bytes:
    """A header of GNU's kind with a right checksum; `extra` stands from byte 386 on."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, size.ljust(12, b"\0"), flag
    block[257:265], block[386 : 386 + len(extra)] = b"ustar  \0", extra
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


def binary(number: int) -> bytes:
    """A number in GNU's base 256, 12 bytes."""
    return ((0x80 << 88) + number).to_bytes(12)


def tar_bombs(good: bytes) -> dict[str, tuple[bytes, set[str]]]:
    """Shards, and why they are left; those that begin with good samples go on with harm."""
    open_end = good[: len(good.rstrip(b"\0")) + 511 & ~511]  # without the mark of its end
    sparse = b"0".ljust(12, b"\0") + b"1".ljust(12, b"\0")
    sparse = sparse.ljust(97, b"\0") + binary(1 << 31)
    return {
        "gzip": (gzip.compress(good), {"shard_compressed"}),
        "gzip of zeros": (gzip.compress(bytes(1 << 28)), {"shard_compressed"}),
        "sparse": (
            open_end + header(b"s.png", b"1", b"S", sparse) + bytes(1536), {"member_not_plain"},
        ),
        "10^11 bytes": (
            open_end + header(b"z.png", binary(10**11), b"0") + bytes(1024),
            {"member_too_large", "shard_truncated"},
        ),
        "negative": (open_end + header(b"n.png", b"\xff" * 12, b"0"), {"shard_corrupt"}),
        "pax": (open_end + header(b"x", b"10000000000", b"x") + bytes(4096), {"header_too_large"}),
        "cut at a header": (open_end, {"shard_truncated"}),
        "empty": (b"", {"shard_truncated"}),
        "a page": (b"<!DOCTYPE html>" * 99, {"shard_corrupt"}),
    }  # fmt: skip


def write_bombs(folder: Path) -> dict[str, list[dict[str, int]]]:
    """Name -> what may be counted in the shard NAME.tar; beside them good.tar and formats.tar."""
    three = [m for k in ("JPEG", "PNG", "WEBP") for m in sample(k, encode(noise(0), k), "png")]
    write(folder / "formats.tar", three)
    good = write(folder / "good.tar", [m for key in "abc" for m in sample(key)])
    may: dict[str, list[dict[str, int]]] = {}
    for name, (picture, reasons) in importlib.import_module("test_image").bombs().items():
        members = [*sample("before"), *sample("bomb", picture), *sample("after")]
        write(folder / f"{name}.tar", members)
        may[name] = [{reason: 1} for reason in reasons.split(" or ")]
    for name, (content, lost) in tar_bombs(Path(good).read_bytes()).items():
        (folder / f"{name}.tar").write_bytes(content)
        may[name] = [dict.fromkeys(lost, 1)]
    return may


def peak(*, anew: bool = False) -> int:
    """KB that this program has held at most, with `anew` from now on.

    `ru_maxrss` says nothing here: it is at least that of the process that started this one.
    """
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def read_bombs(folder: Path, names: Sequence[str]) -> None:
    """Reads each with good samples before or after it; prints what came of it, and what it took."""
    good = str(folder / "good.tar")
    for _ in range(3):  # so that codecs are loaded
        data = shards_data([str(folder / "formats.tar")], batch=3)
        counted(data, folder)
        trained(data, 20)
    for name in names:
        shard, begin, before = str(folder / f"{name}.tar"), time.process_time(), peak(anew=True)
        used, counts = counted(shards_data([shard, good]), folder)
        batches, met = trained(shards_data([good, shard]), 20)
        told = {
            "name": name, "used": used, "counts": counts, "met": sorted(met),
            "keys": sorted({batch.keys[0] for batch in batches}),
            "seconds": time.process_time() - begin, "grown": peak() - before,
        }  # fmt: skip
        print("told:", json.dumps(told))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its memory in /proc")
def test_bombs_cost_neither_time_nor_memory_nor_the_good_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    may = write_bombs(tmp_path)
    places = [Path(__file__).parents[1], *map(Path, sys.path)]
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path), *may], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(x[6:]) for x in done.stdout.splitlines() if x.startswith("told: ")]
    assert [told["name"] for told in lines] == list(may)
    for told in lines:
        name = told["name"]
        assert told["counts"] in may[name], told
        assert set(told["met"]) == set(told["counts"]), told
        assert {"a", "b", "c"} <= set(told["keys"]), told
        if name in ("JPEG", "PNG", "WEBP", "text", "late text"):
            assert {"before", "after"} <= set(told["keys"]), told
            assert told["used"] == 5, told
        assert told["seconds"] < 3, told  # 0.13 of it, and nearly all, are the config's
        assert told["grown"] < 30_000, told


# -- shards on the way -----------------------------------------------------------------------------


class Failing(http.server.BaseHTTPRequestHandler):
    """Serves good.tar; others break in the way that their name says."""

    content = b""
    over = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path[1:].removesuffix(".tar")
        if name.isdecimal():
            self.send_error(int(name))
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        sent = {"short": len(self.content) // 2, "silent": 600}.get(name, len(self.content))
        self.wfile.write(self.content[:sent])
        if name == "silent":
            self.over.wait(60)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    path = write(tmp_path / "good.tar", [m for key in "abcdef" for m in sample(key)])
    Failing.content = Path(path).read_bytes()
    Failing.over.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{{}}.tar"
        Failing.over.set()
        server.shutdown()


def test_a_list_with_broken_links_is_trained_on(web: str, tmp_path: Path) -> None:
    expected = {
        "404": "shard_missing", "403": "shard_refused", "500": "shard_http",
        "short": "shard_short", "silent": "shard_timeout",
    }  # fmt: skip
    names = [web.format(name) for name in ("good", *expected)]
    empty = write(tmp_path / "empty.tar", [])
    hurry = ["data.access.attempts=1", "data.access.backoff=0", "data.access.patience=0.3"]
    begin = time.monotonic()
    data = shards_data([*names, empty], *hurry)
    used, counts = counted(data, tmp_path)
    assert set(counts) == set(expected.values())
    assert 6 < used < 12, "those before the break are whole"
    batches, reasons = trained(data, 3 * used + 9)
    assert {batch.keys[0] for batch in batches} == set("abcdef")
    assert reasons == set(expected.values())
    assert time.monotonic() - begin < 30


if __name__ == "__main__":
    read_bombs(Path(sys.argv[1]), sys.argv[2:])
