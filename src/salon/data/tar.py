"""The samples of one tar, read strictly and in bounded memory from anything that has `read(n)`.

Replaces `webdataset.tariterators` (tar_file_expander and group_by_keys, which stand on tarfile's
stream mode) for shards that nobody has vouched for. On those webdataset

* takes the end of a cut file for the end of the tar, and passes the half sample before it on;
* opens compressed and sparse tars, in which a kilobyte becomes gigabytes;
* ends a key at its first dot, so that `v1.2/a.jpg` and `v1.2/b.jpg` are two members of `v1`;
* makes several halves of one sample, silently, where its members do not stand together.

Here every sample comes out whole or as a Lost that says why, and so does what a shard lacks. The
format is POSIX.1-1988 (ustar) and .1-2001 (pax), GNU's long names, large numbers and sparse marks,
and the headers of Unix V7.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

from salon.data.reasons import Bad
from salon.data.settings import number

BLOCK = 512  # a tar is made of these
CHUNK = 256 * 1024  # bytes asked of the stream at a time
LARGEST = 2**53  # bytes; no member is larger, a number that is larger is damage
COMPRESSED = (
    b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06",
)  # fmt: skip

# The kinds of member, as the byte 156 of a header tells them.
FILES = frozenset(b"07\0")  # ustar's, ustar's contiguous file, and V7's
BODILESS = frozenset(b"123456")  # links, devices, directories, fifos: their size means nothing
DIRECTORIES = frozenset(b"5D")  # ustar's, and GNU's with a list of names
EXTENDED = frozenset(b"xXgLK")  # pax (X: Sun's), pax for all that follow, GNU long name and link
SPARSE = ord("S")


class Limits(NamedTuple):
    member: int  # bytes of one member
    json: int  # bytes of a .json
    header: int  # bytes of one extended header (pax, GNU long name)


def make_limits(*, member: int, json: int, header: int) -> Limits:
    """Raises ValueError that names data.limits and the setting."""
    limits = Limits(member, json, header)
    for name, value in limits._asdict().items():
        number(f"data.limits.{name}", value, least=1, whole=True)
    return limits


class Encoded(NamedTuple):
    key: str  # the member's path without its last known extension
    members: dict[str, bytes]  # lower-case extension without dot -> bytes


class Lost(NamedTuple):
    key: str | None  # None: whatever the shard held from here on
    reason: str  # a code of salon.data.reasons
    detail: str  # what, and at which byte of the shard


def samples(
    stream: BinaryIO, *, limits: Limits, extensions: frozenset[str]
) -> Iterator[Encoded | Lost]:
    """The samples of a shard as they stand, and a Lost for each that cannot be used.

    Members of one key stand together; a kind that comes again begins another sample, and a key
    that stood before is a Lost. Members of other extensions, directories and what archivers add
    (`._a.jpg`, `__meta__.json`) are passed over. A defect of the shard is the last item: whether
    the sample before it was complete cannot be known, so that one is dropped. `Bad` raised by
    `stream.read` is such a defect as well.
    """
    kinds = {extension.encode(): extension for extension in extensions}
    seen: set[int] = set()  # hashes: a name may be as long as limits.header
    key: bytes | None = None
    members: dict[str, bytes] = {}
    fault: tuple[str, str] | None = None
    try:
        source = _Source(stream)
        for at, name, size, plain in _members(source, limits.header):
            stem, _, extension = name.rpartition(b".")
            kind = kinds.get(extension) or kinds.get(extension.lower())
            if kind is None or _is_extra(stem):
                continue
            if stem != key or kind in members:
                if key is not None:
                    yield _finished(key, members, fault)
                key, members, fault, mark = stem, {}, None, hash(stem)
                if mark in seen:
                    fault = "duplicate_key", f"its key stood before the .{kind} at byte {at:,}"
                seen.add(mark)
            members[kind] = b""
            fault = fault or _fault(kind, at, size, plain, limits)
            if fault is None:
                members[kind] = source.take(size, "a member")
    except Bad as error:
        detail = error.detail
        if key is not None and fault is not None:
            yield _finished(key, members, fault)
        elif key is not None:
            detail += f"; 1 sample, {_text(key)[:80]!r}, may be cut and is dropped"
        yield Lost(None, error.reason, detail)
    else:
        if key is not None:
            yield _finished(key, members, fault)


def _finished(
    key: bytes, members: dict[str, bytes], fault: tuple[str, str] | None
) -> Encoded | Lost:
    return Encoded(_text(key), members) if fault is None else Lost(_text(key), *fault)


def _text(key: bytes) -> str:
    # Only here: other bytes than UTF-8 all become the same sign, and two keys must stay two.
    return key.decode("utf-8", "replace")


def _is_extra(stem: bytes) -> bool:
    """`._a`: a resource fork of macOS; `__meta__`: of webdataset; nothing: a name like `.jpg`."""
    base = stem[stem.rfind(b"/") + 1 :]
    return not base or base.startswith((b"._", b"__"))


def _fault(kind: str, at: int, size: int, plain: bool, limits: Limits) -> tuple[str, str] | None:
    if not plain:
        return "member_not_plain", f"the .{kind} at byte {at:,} is a link, a device or sparse"
    limit, reason = limits.member, "member_too_large"
    if kind == "json":
        limit, reason = limits.json, "json_too_large"
    if size <= limit:
        return None
    return reason, f"the .{kind} at byte {at:,} has {size:,} bytes; {limit:,} are allowed"


# -- members -----------------------------------------------------------------------------------


def _members(source: _Source, limit: int) -> Iterator[tuple[int, bytes, int, bool]]:
    """Each member's place, name, size and whether it is a plain file, up to the end mark.

    The source stands at the member's bytes then; what is not taken of them is passed over.
    """
    told: dict[bytes, bytes] = {}  # by the extended headers before a member
    while True:
        at = source.at
        block = source.some(BLOCK)
        if not _sum_holds(block):
            _demand_end_mark(source, block, at)
            if told:
                raise Bad("shard_corrupt", f"no member after the headers before byte {at:,}")
            return
        flag = block[156]
        size = 0 if flag in BODILESS else _size(block[124:136], at)
        if flag in EXTENDED:
            if size > limit:
                raise Bad(
                    "header_too_large",
                    f"the extended header at byte {at:,} has {size:,} bytes; {limit:,} are allowed",
                )
            told |= _told(flag, source.take(size, "an extended header"), at)
            source.leave(-size % BLOCK)
            continue
        name, plain = _name(block), flag in FILES
        if told:
            name = told.get(b"GNU.sparse.name") or told.get(b"path") or told.get(b"L") or name
            if flag not in BODILESS and told.get(b"size"):
                size = _decimal(told[b"size"], at)
            plain = plain and not any(record.startswith(b"GNU.sparse.") for record in told)
            told = {}
        more = flag == SPARSE and block[482]
        while more:  # blocks of GNU's map of a sparse file, which `size` does not count
            more = source.take(BLOCK, "the map of a sparse file")[504]
        end = source.at + size + -size % BLOCK
        if flag not in DIRECTORIES:
            yield at, name, size, plain
        source.leave(end - source.at)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":  # GNU's magic has other things there
        return block[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _told(flag: int, content: bytes, at: int) -> dict[bytes, bytes]:
    """What an extended header says of the next member's name, size and sparseness."""
    if flag == ord("L"):
        return {b"L": content.partition(b"\0")[0]}
    if flag not in b"xX":  # of a link's target, or of all members: nothing that is used here
        return {}
    told = {}
    start, end = 0, len(content.rstrip(b"\0"))
    while start < end:  # "LENGTH NAME=VALUE\n", where LENGTH counts itself as well
        digits = content[start : start + 20].partition(b" ")[0]
        after = start + _decimal(digits, at)
        record = content[start + len(digits) + 1 : after]
        name, equals, value = record[:-1].partition(b"=")
        if after > end or not (equals and record.endswith(b"\n")):
            raise Bad("shard_corrupt", f"no pax records in the header at byte {at:,}")
        if name in (b"path", b"size") or name.startswith(b"GNU.sparse."):
            told[name] = value
        start = after
    return told


# -- numbers -----------------------------------------------------------------------------------


def _octal(field: bytes) -> int | None:
    text = field.partition(b"\0")[0].strip(b" ")
    try:
        return int(text, 8) if text.isdigit() else None  # int() alone takes -1, 1_0 and 0o1
    except ValueError:  # an 8 or a 9
        return None


def _decimal(text: bytes, at: int) -> int:
    if not text.isdigit() or len(text) > 20 or int(text) > LARGEST:
        raise Bad("shard_corrupt", f"a number of the header at byte {at:,} is {text[:20]!r}")
    return int(text)


def _size(field: bytes, at: int) -> int:
    # GNU: the first bit, then 95 of a number with a sign; below zero it is far beyond LARGEST here.
    size = _octal(field) if field[0] < 0x80 else int.from_bytes(field) - (0x80 << 88)
    if size is None or size > LARGEST:
        raise Bad("shard_corrupt", f"the size in the header at byte {at:,} is {field!r}")
    return size


def _sum_holds(block: bytes) -> bool:
    """Whether it is a whole header, whose bytes add up to the sum it states (itself spaces)."""
    stated = _octal(block[148:156])
    if stated is None or len(block) < BLOCK:
        return False
    # Adler-32's lower half is 1 + the sum of the bytes, mod 65,521, many times faster than sum().
    if zlib.adler32(block[156:], zlib.adler32(block[:148], 1 + 8 * 32)) & 0xFFFF == stated + 1:
        return True
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    high = sum(byte > 127 for byte in block[:148] + block[156:])
    return stated in (unsigned, unsigned - 256 * high)  # some old tars add up signed bytes


def _demand_end_mark(source: _Source, block: bytes, at: int) -> None:
    """Raises Bad unless two blocks of zeros stand here, or one at the end of the file."""
    if at == 0 and block.startswith(COMPRESSED):
        raise Bad("shard_compressed", f"it begins with {block[:6].hex(' ')}; expected a plain tar")
    if not block:
        raise Bad("shard_truncated", f"it ends at byte {at:,}, without the mark of its end")
    if len(block) < BLOCK:
        source.fail_within("a header")
    if any(block):
        raise Bad("shard_corrupt", f"the header at byte {at:,} has a wrong checksum")
    if any(source.some(BLOCK)):
        raise Bad("shard_corrupt", f"half an end mark at byte {at:,}, and bytes after it")


# -- bytes -------------------------------------------------------------------------------------


class _Source:
    """A stream's bytes in order; no more of it is held than a chunk and what is taken.

    Raises Bad where the stream fails, and where it ends too early.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._chunk = b""
        self._next = 0  # place in the chunk
        self._before = 0  # bytes before the chunk

    @property
    def at(self) -> int:
        return self._before + self._next

    def take(self, size: int, what: str) -> bytes:
        data = self.some(size)
        if len(data) < size:
            self.fail_within(what)
        return data

    def some(self, size: int) -> bytes:
        """As many bytes as asked for, or all that are left."""
        start = self._next
        if start + size <= len(self._chunk):
            self._next = start + size
            return self._chunk[start : self._next]
        data = bytearray(self._chunk[start:])
        self._next = len(self._chunk)
        while len(data) < size and self._refill():
            self._next = min(size - len(data), len(self._chunk))
            data += self._chunk[: self._next]
        return bytes(data)

    def leave(self, size: int) -> None:
        """Passes over so many bytes."""
        self._next += size
        while self._next > len(self._chunk):
            wanted = self._next - len(self._chunk)
            self._next = len(self._chunk)
            if not self._refill():
                self.fail_within("a member")
            self._next = wanted

    def fail_within(self, what: str) -> NoReturn:
        raise Bad("shard_truncated", f"it ends at byte {self.at:,}, within {what}")

    def _refill(self) -> bool:
        try:
            chunk = self._stream.read(CHUNK)
        except OSError as error:
            raise Bad("shard_unreadable", f"at byte {self.at:,}: {error}") from error
        if chunk:
            self._before += len(self._chunk)
            self._chunk, self._next = chunk, 0
        return bool(chunk)
