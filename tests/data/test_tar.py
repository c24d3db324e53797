"""The reader of tars: what it makes of sane ones, of odd ones, and of broken and hostile ones."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from salon.data.reasons import BAD, Bad
from salon.data.tar import CHUNK, Encoded, Limits, Lost, samples

EXTENSIONS = frozenset(["png", "jpg", "jpeg", "webp", "txt", "json", "npy"])
LIMITS = Limits(member=100_000, json=10_000, header=5_000)
END = bytes(1024)
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
Item = Encoded | Lost


class OnlyRead:
    """Of a stream no more than `read(n)`, and fewer bytes than asked for, as a socket gives."""

    def __init__(self, content: bytes, pieces: Iterable[int] = (CHUNK,)) -> None:
        self.content, self.place, self.pieces = content, 0, itertools.cycle(pieces)

    def read(self, size: int) -> bytes:
        assert 0 < size <= 1 << 20
        piece = self.content[self.place : self.place + min(size, next(self.pieces))]
        self.place += len(piece)
        return piece


def read(shard: bytes, *, pieces: Iterable[int] = (CHUNK,), limits: Limits = LIMITS) -> list[Item]:
    stream: Any = OnlyRead(shard, pieces)
    return list(samples(stream, limits=limits, extensions=EXTENSIONS))


def reasons(items: Iterable[Item]) -> list[tuple[str | None, str]]:
    """(key, reason); the reason of what is usable is ''."""
    return [(item.key, item.reason if isinstance(item, Lost) else "") for item in items]


def header(name: bytes, size: int = 0, flag: bytes = b"0", **fields: bytes) -> bytes:
    """A header of hand-made fields: size_, prefix, magic, extra (from byte 482) as bytes."""
    block = struct.pack(
        "100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 32s 32s 8s 8s 155s 12x",
        name, b"0000644\0", b"0000000\0", b"0000000\0", fields.get("size_", b"%011o\0" % size),
        b"00000000000\0", b" " * 8, flag, fields.get("link", b""),
        fields.get("magic", b"ustar\x0000"), b"", b"", b"", b"", fields.get("prefix", b""),
    )  # fmt: skip
    if "extra" in fields:
        block = block[:482] + fields["extra"] + block[482 + len(fields["extra"]) :]
    return summed(block, sum(block))


def summed(block: bytes, value: int) -> bytes:
    return block[:148] + b"%06o\0 " % value + block[156:]


def member(name: bytes, content: bytes = b"bytes", flag: bytes = b"0", **fields: bytes) -> bytes:
    return header(name, len(content), flag, **fields) + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """An extended header of records."""
    content = b""
    for name, value in records:
        rest = b" " + name + b"=" + value + b"\n"
        length = next(n for n in range(len(rest), len(rest) + 9) if len(b"%d" % n + rest) == n)
        content += b"%d" % length + rest
    return member(b"PaxHeader/x", content, flag)


def archive(members: Iterable[tuple[str, bytes]], form: int, **more: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in more.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def triples(number: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [
        (f"{i:04d}.{extension}", bytes([i, place]) * (size // 2))
        for i in range(number)
        for place, extension in enumerate(("jpg", "txt", "json"))
    ]


def grouped(members: Iterable[tuple[str, bytes]]) -> list[Item]:
    """What members of good names are to become."""
    split = [(*name.rsplit(".", 1), content) for name, content in members]
    return [
        Encoded(key, {extension: content for _, extension, content in group})
        for key, group in itertools.groupby(split, key=lambda one: one[0])
    ]


# -- sane shards -------------------------------------------------------------------------------

LONG = "folder/" * 30 + "name" * 30 + ".jpg"  # 331 characters
NAMES = {
    "directories and dots": "v1.2/img.0001.jpg",
    "spaces": "a b c .jpg",
    "unicode": "画像/été ☃.jpg",
    "up": "../../etc/x.jpg",
    "absolute": "/etc/x.jpg",
    "exactly 100 bytes": "n" * 96 + ".jpg",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pieces", [(CHUNK,), (1, 511, 2), (512,), (513, 7)])
def test_what_tarfile_writes_is_read(form: str, pieces: tuple[int, ...]) -> None:
    written = triples(7)
    assert read(archive(written, FORMATS[form]), pieces=pieces) == grouped(written)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_a_key_and_nothing_else(form: str, name: str) -> None:
    written = [(name, b"picture"), (name[:-4] + ".txt", b"caption")]
    shard = archive(written, FORMATS[form])
    assert read(shard) == [Encoded(name[:-4], {"jpg": b"picture", "txt": b"caption"})]


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_names_are_read_whole(form: str) -> None:
    shard = archive([(LONG, b"picture"), ("next.jpg", b"")], FORMATS[form])
    assert read(shard) == [Encoded(LONG[:-4], {"jpg": b"picture"}), Encoded("next", {"jpg": b""})]


def test_a_name_that_ustar_splits_is_joined() -> None:
    name = "folder/" * 20 + "img.01.jpg"
    assert reasons(read(archive([(name, b"x")], tarfile.USTAR_FORMAT))) == [(name[:-4], "")]


def test_gnu_keeps_times_where_ustar_has_the_prefix() -> None:
    shard = member(b"a.jpg", magic=b"ustar  \0", prefix=b"14712345670\0") + END
    assert reasons(read(shard)) == [("a", "")]


def test_a_long_link_target_does_not_rename_the_member() -> None:
    shard = archive([("a.jpg", b"x")], tarfile.GNU_FORMAT, linkname="to/" * 90)
    assert shard[156:157] == b"K"
    assert read(shard) == [Encoded("a", {"jpg": b"x"})]


def test_unix_v7_is_read() -> None:
    shard = b"".join(
        [
            member(b"old/", b"", b"\0", magic=b""),
            member(b"old/a.jpg", b"picture", b"\0", magic=b"", size_=b"         7 \0"),
            member(b"old/a.txt", b"caption", b"\0", magic=b"", size_=b"7".rjust(12)),
        ]
    )
    assert read(shard + END) == [Encoded("old/a", {"jpg": b"picture", "txt": b"caption"})]


def test_a_contiguous_file_is_a_file() -> None:
    assert read(member(b"a.jpg", b"x", b"7") + END) == [Encoded("a", {"jpg": b"x"})]


def test_bytes_that_are_no_utf8_leave_two_keys_two() -> None:
    shard = member(b"\xe9.jpg") + member(b"\xe8.jpg") + member(b"\xe8.txt") + END
    found = read(shard)
    assert [(item.key, set(item.members)) for item in found] == [  # type: ignore[union-attr]
        ("\ufffd", {"jpg"}),
        ("\ufffd", {"jpg", "txt"}),
    ]


def test_the_extension_is_told_in_lower_case_and_jpeg_is_not_jpg() -> None:
    shard = member(b"a.JPG", b"1") + member(b"a.Jpeg", b"2") + END
    assert read(shard) == [Encoded("a", {"jpg": b"1", "jpeg": b"2"})]


def test_the_key_ends_at_the_last_dot() -> None:
    shard = member(b"a.jpg.txt", b"1") + member(b"a.txt", b"2") + END
    assert read(shard) == [Encoded("a.jpg", {"txt": b"1"}), Encoded("a", {"txt": b"2"})]


@pytest.mark.parametrize(
    "extra",
    [
        member(b"a.pkl", b"x" * 2000),
        member(b"b.mp4", b"x" * 200_000),
        member(b"._a.jpg"),
        member(b"deep/._a.jpg"),
        member(b"__meta__.json"),
        member(b"deep/__note.txt"),
        member(b".jpg"),
        member(b"deep/.jpg"),
        member(b"jpg"),
        member(b"README"),
        member(b"a.jpg/img"),
        header(b"a.txt/", flag=b"5"),
        header(b"a.txt", flag=b"5"),
        header(b"a.txt", flag=b"5", size_=b"\xff" * 12),
        header(b"a.txt/", flag=b"\0"),
        member(b"a.txt", b"Yfile\0", b"D"),
        member(b"a", b"", b"2", link=b"/etc/passwd"),
        pax((b"comment", b"0123abcd"), (b"path", b"z.jpg"), (b"size", b"9"), flag=b"g"),
    ],
    ids=lambda block: f"{block[156:157]!r} {block[:100].rstrip(bytes(1))!r}",
)
def test_what_is_no_member_is_passed_over_even_within_a_sample(extra: bytes) -> None:
    shard = extra + member(b"a.jpg", b"1") + extra + member(b"a.txt", b"2") + extra + END
    assert read(shard) == [Encoded("a", {"jpg": b"1", "txt": b"2"})]


def test_nothing_but_the_end_mark_is_an_empty_shard() -> None:
    assert read(END) == []


@pytest.mark.parametrize("zeros", [512, 700, 1023])
def test_a_cut_within_the_end_mark_is_none(zeros: int) -> None:
    assert reasons(read(member(b"a.jpg") + bytes(zeros))) == [("a", "")]


def test_what_follows_the_end_mark_is_not_read() -> None:
    assert reasons(read(member(b"a.jpg") + END + b"junk" + member(b"b.jpg"))) == [("a", "")]


# -- beside webdataset -------------------------------------------------------------------------


def by_webdataset(shard: bytes) -> list[dict[str, Any]]:
    source = [{"url": "shard", "stream": io.BytesIO(shard)}]
    return list(wds.tariterators.group_by_keys(wds.tariterators.tar_file_expander(source)))


def in_its_words(items: Iterable[Item]) -> list[dict[str, Any]]:
    told = []
    for item in items:
        assert isinstance(item, Encoded), item
        told.append({"__key__": item.key, "__url__": "shard", **item.members})
    return told


def test_what_webdataset_writes_is_read_and_as_webdataset_reads_it(tmp_path: Path) -> None:
    written = [
        {"__key__": f"{i:05d}", "jpg": bytes([i]) * 3000 * i, "txt": f"é {i}", "json": {"i": i}}
        for i in range(9)
    ]
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=4, verbose=0) as writer:
        for sample in written:
            writer.write(sample)
    with wds.TarWriter(str(tmp_path / "whole.tar")) as tar:
        for sample in written:
            tar.write(sample)
    paths = sorted(tmp_path.glob("0*.tar"))
    assert len(paths) == 3
    parts = [path.read_bytes() for path in paths]
    whole = (tmp_path / "whole.tar").read_bytes()
    found = read(whole)
    assert [item.key for item in found] == [sample["__key__"] for sample in written]
    assert [item.members["jpg"] for item in found] == [sample["jpg"] for sample in written]
    assert list(itertools.chain(*map(read, parts))) == found
    assert in_its_words(found) == by_webdataset(whole)


@pytest.mark.parametrize("form", FORMATS)
def test_webdataset_reads_what_we_read(form: str) -> None:
    shard = archive(triples(5, size=3000), FORMATS[form])
    assert in_its_words(read(shard)) == by_webdataset(shard)


def test_a_cut_at_a_header_boundary_is_silent_in_webdataset_and_told_here() -> None:
    shard = archive(triples(3, size=700), tarfile.USTAR_FORMAT)
    cut = shard[: 4 * (512 + 1024)]  # the second sample has its picture and nothing more
    assert [set(sample) & EXTENSIONS for sample in by_webdataset(cut)] == [
        {"jpg", "txt", "json"},
        {"jpg"},
    ]
    assert reasons(read(cut)) == [("0000", ""), (None, "shard_truncated")]


def test_interleaved_members_and_dots_are_silent_in_webdataset_and_told_here() -> None:
    shard = b"".join(member(name) for name in (b"a.jpg", b"b.jpg", b"a.txt", b"b.txt")) + END
    assert [set(sample) & EXTENSIONS for sample in by_webdataset(shard)] == [
        {"jpg"}, {"jpg"}, {"txt"}, {"txt"},
    ]  # fmt: skip
    assert reasons(read(shard)) == [
        ("a", ""), ("b", ""), ("a", "duplicate_key"), ("b", "duplicate_key"),
    ]  # fmt: skip
    dotted = member(b"a.b.jpg") + member(b"a.b.txt") + END
    assert by_webdataset(dotted)[0]["__key__"] == "a"
    assert reasons(read(dotted)) == [("a.b", "")]


# -- keys that come twice ----------------------------------------------------------------------


def test_a_kind_that_comes_again_begins_another_sample_which_is_lost() -> None:
    shard = b"".join(
        member(name, content)
        for name, content in [
            (b"a.jpg", b"1"), (b"a.txt", b"2"),
            (b"a.JPG", b"3"), (b"a.txt", b"4"),
            (b"a.txt", b"5"),
            (b"b.jpg", b"6"),
        ]
    )  # fmt: skip
    found = read(shard + END)
    assert found[0] == Encoded("a", {"jpg": b"1", "txt": b"2"})
    assert reasons(found[1:]) == [("a", "duplicate_key"), ("a", "duplicate_key"), ("b", "")]
    assert "the .jpg at byte 2,048" in found[1].detail  # type: ignore[union-attr]


def test_a_key_that_comes_later_again_is_lost() -> None:
    shard = member(b"a.jpg") + member(b"b.jpg") + member(b"a.jpg") + member(b"a.txt") + END
    assert reasons(read(shard)) == [("a", ""), ("b", ""), ("a", "duplicate_key")]


def test_a_key_is_remembered_for_its_own_shard_only() -> None:
    shard = member(b"a.jpg") + END
    assert reasons(read(shard) + read(shard)) == [("a", ""), ("a", "")]


# -- members that are not usable ---------------------------------------------------------------

OLD_SPARSE = (
    header(b"a.txt", 512, b"S", magic=b"ustar  \0", extra=b"\1")
    + bytes(504) + b"\1" + bytes(7)
    + bytes(512)
    + bytes(512)
)  # fmt: skip
NOT_PLAIN = {
    "hard link": header(b"a.txt", 5, b"1", link=b"b.txt"),
    "hard link, sized by pax": pax((b"size", b"5")) + header(b"a.txt", 0, b"1", link=b"b.txt"),
    "symbolic link": header(b"a.txt", 5, b"2", link=b"/etc/passwd"),
    "character device": header(b"a.txt", 0, b"3"),
    "block device": header(b"a.txt", 0, b"4"),
    "fifo": header(b"a.txt", 0, b"6"),
    "continued": member(b"a.txt", b"x", b"M"),
    "unknown": member(b"a.txt", b"x" * 513, b"Q"),
    "GNU sparse": OLD_SPARSE,
    "pax sparse 0.1": pax((b"GNU.sparse.size", b"2000000000"), (b"GNU.sparse.map", b"0,1"))
    + member(b"a.txt", b"x"),
    "pax sparse 1.0": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"a.txt"))
    + member(b"./GNUSparseFile.1/other.txt", b"x"),
}


@pytest.mark.parametrize("block", NOT_PLAIN.values(), ids=NOT_PLAIN)
@pytest.mark.parametrize("first", [True, False])
def test_a_member_that_is_no_plain_file_loses_its_sample(block: bytes, first: bool) -> None:
    pair = [block, member(b"a.jpg")]
    shard = b"".join(pair if first else pair[::-1]) + member(b"b.jpg") + END
    found = read(shard)
    assert reasons(found) == [("a", "member_not_plain"), ("b", "")]
    assert ".txt at byte " in found[0].detail  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        (b"a.jpg", 100_000, ""),
        (b"a.jpg", 100_001, "member_too_large"),
        (b"a.txt", 100_001, "member_too_large"),
        (b"a.json", 10_000, ""),
        (b"a.json", 10_001, "json_too_large"),
    ],
)
def test_limits_hold_to_the_byte(name: bytes, size: int, reason: str) -> None:
    shard = member(name, bytes(size)) + member(b"a.png") + member(b"b.jpg") + END
    assert reasons(read(shard)) == [("a", reason), ("b", "")]


def test_the_first_fault_of_a_sample_is_told() -> None:
    shard = header(b"a.jpg", flag=b"2") + member(b"a.json", bytes(20_000)) + END
    assert reasons(read(shard)) == [("a", "member_not_plain")]


# -- numbers and extended headers --------------------------------------------------------------


def base256(value: int) -> bytes:
    return (value % (1 << 96) | 1 << 95).to_bytes(12)


def test_large_numbers_of_gnu_are_read() -> None:
    shard = header(b"a.jpg", size_=base256(5)) + padded(b"bytes") + END
    assert read(shard) == [Encoded("a", {"jpg": b"bytes"})]


@pytest.mark.parametrize(
    "field",
    [
        base256(-1), base256(-(2**60)), base256(2**53 + 1), b"\x80" + b"\xff" * 11,
        b"not a number", b"-0000000001\0", b"+0000000001\0", b"0000000_001\0", b"0o000000001\0",
        b"00000000009\0", b"           \0", bytes(12), b"0000000001x\0", b"\xb2".ljust(12, b"0"),
    ],
)  # fmt: skip
def test_sizes_that_are_none_are_damage(field: bytes) -> None:
    shard = member(b"a.jpg") + member(b"b.jpg") + header(b"c.jpg", size_=field) + padded(b"x")
    found = read(shard + END)
    assert reasons(found) == [("a", ""), (None, "shard_corrupt")]
    assert "byte 2,048" in found[-1].detail  # type: ignore[union-attr]
    assert "'b'" in found[-1].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [b"-1", b"x", b"1e3", b"9007199254740993", b"9" * 4400])
def test_sizes_of_pax_that_are_none_are_damage(value: bytes) -> None:
    shard = pax((b"size", value)) + member(b"a.jpg") + END
    assert reasons(read(shard)) == [(None, "shard_corrupt")]


def test_pax_overrides_the_header_for_one_member() -> None:
    shard = b"".join(
        [
            pax((b"mtime", b"1.5"), (b"path", b"new name.jpg"), (b"size", b"600")),
            header(b"old.txt", 1) + padded(b"x" * 600),
            member(b"new name.txt", b"y"),
        ]
    )
    assert read(shard + END) == [Encoded("new name", {"jpg": b"x" * 600, "txt": b"y"})]


def test_an_empty_record_of_pax_leaves_the_header_as_it_is() -> None:
    shard = pax((b"path", b""), (b"size", b"")) + member(b"a.jpg") + END
    assert read(shard) == [Encoded("a", {"jpg": b"bytes"})]


def test_the_last_of_two_equal_records_holds() -> None:
    shard = pax((b"path", b"b.jpg"), (b"path", b"c.jpg")) + member(b"a.jpg") + END
    assert reasons(read(shard)) == [("c", "")]


def test_a_value_may_hold_every_sign() -> None:
    shard = pax((b"path", b"a=1\n2 3=.jpg")) + member(b"a.jpg") + END
    assert reasons(read(shard)) == [("a=1\n2 3=", "")]


@pytest.mark.parametrize(
    "records",
    [b"x path=a.jpg\n", b"0 path=a.jpg\n", b"99 path=a.jpg\n", b"12 pathname\n", b"13 path=a.jpg",
     b"-9 path=a.jpg\n", b"2222222222222222222222", b"5\n", b"\0\0x"],
)  # fmt: skip
def test_pax_records_that_are_none_are_damage(records: bytes) -> None:
    shard = member(b"PaxHeader", records, b"x") + member(b"a.jpg") + END
    assert reasons(read(shard)) == [(None, "shard_corrupt")]


def test_zeros_after_the_last_pax_record_are_no_record() -> None:
    shard = member(b"PaxHeader", b"14 path=b.jpg\n\0\0", b"x") + member(b"a.jpg") + END
    assert reasons(read(shard)) == [("b", "")]


@pytest.mark.parametrize("flag", [b"x", b"X", b"g", b"L", b"K"])
def test_an_extended_header_of_a_gigabyte_is_refused_unread(flag: bytes) -> None:
    shard = member(b"a.jpg") + member(b"b.jpg") + header(b"x", 1 << 30, flag)
    assert reasons(read(shard)) == [("a", ""), (None, "header_too_large")]
    for size, found in [(5000, ("a", "")), (5001, (None, "header_too_large"))]:
        block = header(b"x", size, flag) + padded(bytes(size))
        assert reasons(read(block + member(b"a.jpg") + END)) == [found]


def test_an_extended_header_before_nothing_is_damage() -> None:
    found = read(member(b"a.jpg") + pax((b"path", b"b.jpg")) + END)
    assert reasons(found) == [(None, "shard_corrupt")]


# -- shards that are broken --------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 99, 120, 150, 156, 300, 511])
def test_a_wrong_checksum_is_damage(place: int) -> None:
    shard = bytearray(member(b"a.jpg") + member(b"b.jpg") + member(b"c.jpg") + END)
    shard[2 * 1024 + place] ^= 0x04
    found = read(bytes(shard))
    assert reasons(found) == [("a", ""), (None, "shard_corrupt")]
    assert "byte 2,048" in found[-1].detail  # type: ignore[union-attr]


def test_the_historic_sum_of_signed_bytes_is_taken() -> None:
    block = header(b"\xe9\xe8.jpg", 5)
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    assert reasons(read(summed(block, unsigned) + padded(b"bytes") + END)) == [("\ufffd\ufffd", "")]
    signed = summed(block, unsigned - 2 * 256)
    assert reasons(read(signed + padded(b"bytes") + END)) == [("\ufffd\ufffd", "")]
    wrong = summed(block, unsigned - 256)
    assert reasons(read(wrong + padded(b"bytes") + END)) == [(None, "shard_corrupt")]


def test_a_sum_beyond_the_modulus_of_the_fast_one_is_exact() -> None:
    block = header(b"\xff" * 96 + b".jpg", prefix=b"\xff" * 155)
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    assert unsigned > 65_521
    assert [item.reason for item in read(summed(block, unsigned - 1) + END)] == ["shard_corrupt"]
    assert isinstance(read(summed(block, unsigned) + END)[0], Encoded)


@pytest.mark.parametrize("field", [b"00_123\0 ", b"        ", bytes(8), b"-00123\0 ", b"009999\0 "])
def test_a_sum_that_is_no_number_is_damage(field: bytes) -> None:
    block = member(b"a.jpg")
    assert reasons(read(block[:148] + field + block[156:] + END)) == [(None, "shard_corrupt")]


def test_half_an_end_mark_with_members_after_it_is_damage() -> None:
    shard = member(b"a.jpg") + member(b"b.jpg") + bytes(512) + member(b"c.jpg") + END
    assert reasons(read(shard)) == [("a", ""), (None, "shard_corrupt")]


@pytest.mark.parametrize("content", [b"", b"<html>no such shard</html>", bytes(511)])
def test_less_than_a_block_is_a_cut_shard(content: bytes) -> None:
    assert reasons(read(content)) == [(None, "shard_truncated")]


def test_a_text_is_damage() -> None:
    assert reasons(read(b"<html>no such shard</html>" * 99)) == [(None, "shard_corrupt")]


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        if content:
            file.writestr("a.jpg", content)
    return buffer.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: b"\x28\xb5\x2f\xfd" + content[:2000],
    "zip": zipped,
}


@pytest.mark.parametrize("content", [b"", archive(triples(3), tarfile.USTAR_FORMAT) * 9])
@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("pieces", [(1,), (CHUNK,)])
def test_compressed_shards_are_refused(kind: str, content: bytes, pieces: tuple[int]) -> None:
    found = read(COMPRESS[kind](content), pieces=pieces)
    assert reasons(found) == [(None, "shard_compressed")]


def test_a_member_may_be_named_like_a_compressed_file() -> None:
    assert reasons(read(member(b"BZh91.jpg") + END)) == [("BZh91", "")]


def test_a_member_that_is_lost_before_the_cut_keeps_its_own_reason() -> None:
    shard = header(b"a.jpg", 10**11, size_=base256(10**11)) + bytes(512)
    assert reasons(read(shard)) == [("a", "member_too_large"), (None, "shard_truncated")]


class Failing(OnlyRead):
    def __init__(self, content: bytes, error: Exception) -> None:
        super().__init__(content)
        self.error = error

    def read(self, size: int) -> bytes:
        if piece := super().read(size):
            return piece
        raise self.error


def failing(error: Exception) -> Iterator[Item]:
    stream: Any = Failing(member(b"a.jpg") + member(b"b.jpg"), error)
    return samples(stream, limits=LIMITS, extensions=EXTENSIONS)


def test_a_stream_that_fails_is_the_last_item() -> None:
    found = list(failing(ConnectionResetError("by the peer")))
    assert reasons(found) == [("a", ""), (None, "shard_unreadable")]
    assert "byte 2,048: by the peer" in found[-1].detail  # type: ignore[union-attr]


def test_a_stream_that_knows_the_reason_is_believed() -> None:
    found = list(failing(Bad("shard_timeout", "30 s")))
    assert reasons(found) == [("a", ""), (None, "shard_timeout")]


def test_a_mistake_in_the_program_comes_through() -> None:
    found = failing(TypeError("a mistake"))
    assert next(found).key == "a"
    with pytest.raises(TypeError, match="a mistake"):
        next(found)


# -- every cut, and any damage -----------------------------------------------------------------


def kept(shard: bytes, cut: int) -> list[str]:
    """The keys whose samples are known to be complete at the cut, by tarfile's own offsets."""
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        members = tar.getmembers()
    last = members[-1]
    ends = last.offset_data + last.size + -last.size % 512
    starts: dict[str, int] = {}  # where the first header of a key is complete
    for one in members:
        starts.setdefault(one.name.rsplit(".", 1)[0], one.offset_data)
    proofs = [*list(starts.values())[1:], ends + 512]
    return [key for key, proof in zip(starts, proofs, strict=True) if cut >= proof]


def check_cut(shard: bytes, whole: list[Item], cut: int) -> None:
    found = read(shard[:cut])
    expected = kept(shard, cut)
    if len(expected) == len(whole):
        assert found == whole
        return
    assert found[:-1] == whole[: len(expected)]
    assert reasons(found[-1:]) == [(None, "shard_truncated")]


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_at_and_beside_a_block(form: str) -> None:
    written = [(f"é{name}", content) for name, content in triples(3)]
    shard = archive(written, FORMATS[form])
    for block in range(0, len(shard) + 1, 512):
        for cut in (block - 1, block, block + 1):
            check_cut(shard, grouped(written), max(cut, 0))


MEMBERS = st.dictionaries(
    st.sampled_from(sorted(EXTENSIONS)), st.binary(max_size=1100), min_size=1, max_size=4
)
SAMPLES = st.lists(MEMBERS, min_size=1, max_size=4)
KEY = st.text("aé/. -", max_size=4)
MANY = settings(max_examples=300, deadline=None, derandomize=True)


@MANY
@given(SAMPLES, KEY, st.sampled_from(sorted(FORMATS.values())), st.data())
def test_whole_samples_outlive_any_cut(
    written: list[dict[str, bytes]], stem: str, form: int, data: st.DataObject
) -> None:
    members = [
        (f"{stem}{i}.{extension}", content)
        for i, sample in enumerate(written)
        for extension, content in sample.items()
    ]
    shard = archive(members, form)
    whole = read(shard)
    assert whole == grouped(members)
    content = len(shard.rstrip(b"\0")) + 1600  # what follows is the end mark alone
    check_cut(shard, whole, data.draw(st.integers(0, content), label="cut"))


def check_order(found: list[Item]) -> None:
    """Codes of the table only; a defect of the shard once, and last."""
    lost = [item for item in found if isinstance(item, Lost)]
    assert {item.reason for item in lost} <= set(BAD)
    assert all(item.key is not None for item in found[:-1])


PATCHES = st.lists(st.tuples(st.integers(0, 8000), st.binary(min_size=1, max_size=12)), max_size=4)


@MANY
@given(PATCHES, st.booleans(), st.sampled_from(sorted(FORMATS.values())))
def test_damage_never_raises(patches: list[tuple[int, bytes]], mend: bool, form: int) -> None:
    shard = bytearray(archive([(f"é{n}", c) for n, c in triples(2, 100)], form))
    for place, patch in patches:
        place %= len(shard) - len(patch)
        shard[place : place + len(patch)] = patch
    for start in range(0, len(shard), 512) if mend else ():  # so that damage gets past the sums
        block = bytes(shard[start : start + 512])
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            shard[start : start + 512] = summed(block, total)
    check_order(read(bytes(shard)))


@MANY
@given(st.binary(max_size=3000))
def test_any_bytes_never_raise(content: bytes) -> None:
    check_order(read(content))
    check_order(read(member(b"PaxHeader", content, b"x") + member(b"a.jpg") + END))


# -- memory ------------------------------------------------------------------------------------


class Endless:
    """First the content, then `more` bytes that nobody has to hold."""

    def __init__(self, content: bytes, more: int) -> None:
        self.content, self.more = content, more

    def read(self, size: int) -> bytes:
        if self.content:
            piece, self.content = self.content[:size], self.content[size:]
            return piece
        piece = b"x" * min(size, self.more)
        self.more -= len(piece)
        return piece


def peak(stream: Any) -> tuple[list[tuple[str | None, str]], int]:
    tracemalloc.start()
    try:
        found = [(item.key and item.key[:9], getattr(item, "reason", "")) for item in samples(
            stream, limits=LIMITS, extensions=EXTENSIONS
        )]  # fmt: skip
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = {
    "a member": (header(b"a.jpg", 1 << 28), [("a", "member_too_large"), (None, "shard_truncated")]),
    "a member of no use": (header(b"a.mp4", 1 << 28), [(None, "shard_truncated")]),
    "a header": (header(b"x", 1 << 28, b"x"), [(None, "header_too_large")]),
    "a long name": (header(b"x", 1 << 28, b"L"), [(None, "header_too_large")]),
    "GNU sparse": (
        header(b"a.jpg", 512, b"S", extra=b"\0" + base256(1 << 31)) + bytes(512) + END,
        [("a", "member_not_plain")],
    ),
    "no tar": (b"", [(None, "shard_corrupt")]),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_is_announced_is_not_allocated(bomb: str) -> None:
    content, expected = BOMBS[bomb]
    found, most = peak(Endless(content, (1 << 28) - 1))
    assert found == expected
    assert most < 6 * CHUNK


def test_names_are_not_kept() -> None:
    """400 keys of 4,900 bytes each, of which those that were seen are remembered."""
    names = (b"%04d" % i + b"n" * 4900 + b".jpg" for i in range(400))
    shard = b"".join(pax((b"path", name)) + member(b"x") for name in names) + END
    assert len(shard) > 10 * CHUNK
    found, most = peak(OnlyRead(shard))
    assert len(found) == 400
    assert most < 4 * CHUNK
