"""Where shards live: which ones a pattern names, and their bytes.

    FOLDER, a/*.tar, a/{00..99}.tar, file://     local files
    https://, http://                            the standard library; http from this machine itself
                                                 always, from elsewhere where it is allowed
    s3://, gs://, hf://                          fsspec, of pip install 'salon[remote]'
    pipe:COMMAND                                 what a command writes, run without a shell

Replaces `webdataset.gopen`, `.cache` and `shardlists.expand_urls`, which run commands in a shell,
lose the server's answer, keep all shards of one base name in one cache file, and let environment
variables change what is opened.

A file that breaks off on the way is resumed where it stopped, if it is still the same file; no
shard is ever held in memory. What cannot be read is `Bad`. What a user has to mend is ValueError,
or ImportError where a package is missing.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import braceexpand
from filelock import FileLock

from salon.data.access import STORES, WEB, Access, Attempts, local_path, refusal, scheme_of
from salon.data.reasons import Bad
from salon.data.transports import (
    CHUNK,
    Stream,
    announced_size,
    store_class,
    store_of,
    within,
    words_of,
)

# -- names -------------------------------------------------------------------------------------


def expand(key: str, patterns: str | Sequence[str], access: Access) -> list[str]:
    """The shards that folders, globs and brace lists name, sorted within each pattern.

    `a::b` is a, then b. Raises ValueError, naming the config `key`, where a pattern names nothing
    or what may not be opened.
    """
    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            for part in pattern.split("::"):
                for name in braceexpand.braceexpand(part):
                    found += _named(name, access)
        except ValueError as error:  # unbalanced braces, too
            raise ValueError(f"{key}={pattern!r}: {error}") from error
    return found


def _named(name: str, access: Access) -> list[str]:
    why = refusal(name, access)
    if why is not None:
        raise ValueError(why)
    scheme = scheme_of(name)
    if scheme == "pipe":
        words_of(name)
        return [name]
    if scheme in WEB:
        if "*" in name or name.endswith("/"):
            raise ValueError(
                "a web server cannot be asked which files it has. Expected their names, as in "
                "'https://example.com/{00000..00099}.tar'"
            )
        return [name]
    found = _in_store(name, scheme, access) if scheme in STORES else _on_disk(name)
    if not found:
        raise ValueError(
            f"no shard there ({name!r} matches no .tar file). Expected a folder of .tar files (in "
            "a store, with a slash at its end), a glob like 'data/laion/*.tar' or a brace list "
            "like 'data/laion/{00000..00099}.tar'"
        )
    return found


def _on_disk(name: str) -> list[str]:
    path = local_path(name)
    if os.path.isdir(path):
        path = f"{glob.escape(path)}/*.tar"
    found = [path] if os.path.exists(path) else sorted(glob.glob(path))
    # A file may be called `pipe:...` or lie in a folder `s3:`; it stays a file.
    return [one if scheme_of(one) == "file" else f"./{one}" for one in found]


def _in_store(name: str, scheme: str, access: Access) -> list[str]:
    store_class(scheme)  # so that a missing package is told now, and not shard by shard
    if name.endswith("/"):
        name += "*.tar"
    if not any(mark in name for mark in "*?["):
        return [name]
    store = store_of(scheme)
    try:
        paths = Attempts(access).run(lambda: within(access.patience, lambda: store.glob(name)))
    except Bad as bad:
        raise ValueError(f"{name!r} cannot be listed: {bad}") from bad
    return [f"{scheme}://{path}" for path in sorted(paths)]


# -- bytes -------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(url: str, access: Access) -> Iterator[BinaryIO]:
    """The bytes of a shard; `read(n)` gives up to n of them, and none at the end.

    Raises Bad, on opening and on reading, and OSError where the cache cannot be written.
    """
    _demand_allowed(url, access)
    kept = access.cache is not None and scheme_of(url) in (*WEB, *STORES)
    with _kept(url, access) if kept else Stream(url, access) as stream:
        yield cast(BinaryIO, stream)


def size_of(url: str, access: Access) -> int | None:
    """Bytes of a shard, where they are known without reading it and it can be reached."""
    _demand_allowed(url, access)
    scheme = scheme_of(url)

    def ask() -> int | None:
        if scheme == "file":
            return os.stat(local_path(url)).st_size
        if scheme in WEB:
            return announced_size(url, access)
        store = store_of(scheme)
        return within(access.patience, lambda: store.info(url)["size"])

    if scheme == "pipe":
        return None
    try:
        return Attempts(access).run(ask)
    except Bad:  # told when it is opened
        return None


def _demand_allowed(url: str, access: Access) -> None:
    why = refusal(url, access)
    if why is not None:
        raise ValueError(f"{url!r}: {why}")


def _kept(url: str, access: Access) -> Stream:
    """A shard from the cache, after it was fetched if it was not there."""
    folder = Path(cast(str, access.cache)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Of the whole URL: the shards of many data sets are called 00000.tar.
    entry = folder / f"{hashlib.sha256(url.encode()).hexdigest()}.tar"
    with FileLock(f"{entry}.lock"):
        if not _is_whole(entry, url, access):
            stream = Stream(url, access)
            if stream.size is None:  # nothing would tell half of it from all of it
                return stream
            part = entry.with_suffix(".part")  # the lock's, so what a kill left is overwritten
            try:
                with stream, open(part, "wb") as file:
                    shutil.copyfileobj(stream, file, CHUNK)
                os.replace(part, entry)
            finally:
                part.unlink(missing_ok=True)
        return Stream(str(entry), access)


def _is_whole(entry: Path, url: str, access: Access) -> bool:
    if not entry.exists():
        return False
    announced = size_of(url, access._replace(attempts=1))
    return announced is None or announced == entry.stat().st_size
