"""The bytes of a shard in order, from wherever it lies, over as many connections as it takes.

Each kind of place has a function that connects: it gives a `Part`, the file from some byte on. A
`Stream` asks for another part, from where it stopped, when one breaks off.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import os
import re
import select
import shlex
import ssl
import stat
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from salon.data.access import (
    STORES,
    WEB,
    Access,
    Attempts,
    Failed,
    answered,
    is_loopback,
    local_path,
    refusal,
    scheme_of,
)  # fmt: skip

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")
REDIRECTS = 5
CHUNK = 256 * 1024  # bytes copied at a time
LEAST = 64 * 1024  # bytes that come within `access.patience`, or the attempt is given up
AHEAD = 4 * 1024 * 1024  # bytes asked of a store at a time


class Part(NamedTuple):
    """A file from some byte on, for as long as the connection lasts."""

    read: Callable[[int], bytes]  # up to so many bytes, and none at the end
    close: Callable[[], object]
    begins: int
    size: int | None  # of the whole file
    version: str | None  # another one means another file


class Stream(io.RawIOBase):
    """A shard, read only forwards. Raises Bad, on opening and on reading."""

    def __init__(self, url: str, access: Access) -> None:
        self._attempts, self._patience = Attempts(access), access.patience
        self._waited, self._came = 0.0, 0  # seconds within reads, and bytes that came in them
        self._connect = functools.partial(_CONNECT[scheme_of(url)], url, access)
        self._at = 0
        self._part: Part | None = None
        self._part = self._attempts.run(lambda: self._connect(0))
        self.size, self._version = self._part.size, self._part.version

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        wanted = len(view) if self.size is None else min(len(view), self.size - self._at)
        chunk = self._attempts.run(lambda: self._some(wanted)) if wanted else b""
        view[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _some(self, wanted: int) -> bytes:
        try:
            if self._part is None:
                self._resume()
            return self._read(wanted, self._at)
        except BaseException:
            self._hang_up()
            raise

    def _read(self, wanted: int, at: int) -> bytes:
        assert self._part is not None
        began = time.monotonic()
        chunk = self._part.read(wanted)
        self._waited += time.monotonic() - began
        self._came += len(chunk)
        if self._waited > self._patience:  # silence ends sooner: this is for what drips
            came, self._waited, self._came = self._came, 0.0, 0
            if came < LEAST:
                detail = f"only {came:,} bytes came in {self._patience:g} seconds"
                raise Failed("shard_timeout", detail, again=True)
        if not chunk and self.size is not None:
            detail = f"{at:,} bytes came of the {self.size:,} that were announced"
            raise Failed("shard_short", detail, again=True)
        return chunk

    def _resume(self) -> None:
        """Raises Failed unless it is the same file still."""
        self._part = part = self._connect(self._at)
        if (part.size, part.version) != (self.size, self._version):
            raise Failed("shard_unreadable", "it changed while it was read", again=False)
        if part.begins < self._at and (part.size is None or part.version is None):
            detail = f"it broke off at byte {self._at:,}, and the server sends no parts"
            raise Failed("shard_short", detail, again=False)
        at = part.begins
        while at < self._at:
            at += len(self._read(min(CHUNK, self._at - at), at))

    def _hang_up(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


# -- local files -------------------------------------------------------------------------------


def _from_disk(url: str, access: Access, at: int) -> Part:
    path = local_path(url)
    told = os.stat(path)
    if not stat.S_ISREG(told.st_mode):
        kind = "a folder" if stat.S_ISDIR(told.st_mode) else "no regular file"
        raise Failed("shard_unreadable", f"it is {kind}", again=False)
    file = open(path, "rb", buffering=0)  # noqa: SIM115
    file.seek(at)
    return Part(file.read, file.close, at, told.st_size, str(told.st_mtime_ns))


# -- the web -----------------------------------------------------------------------------------


def _from_web(url: str, access: Access, at: int) -> Part:
    response = _ask("GET", url, access, {"Range": f"bytes={at}-"} if at else {})
    headers = response.headers
    version = headers.get("ETag") or headers.get("Last-Modified")
    if response.status == 200:
        return Part(response.read1, response.close, 0, response.length, version)
    told = headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", told.strip())
    if found is None or int(found[1]) != at:
        response.close()
        detail = f"asked from byte {at:,} on, the server answers {told!r}"
        raise Failed("shard_http", detail, again=False)
    return Part(response.read1, response.close, at, int(found[2]), version)


def announced_size(url: str, access: Access) -> int | None:
    with contextlib.closing(_ask("HEAD", url, access, {})) as response:
        told = response.headers.get("Content-Length", "")
        return int(told) if told.isdecimal() else None


def _ask(
    method: str, url: str, access: Access, headers: dict[str, str]
) -> http.client.HTTPResponse:
    """The answer 200 or 206, after redirects; another one is Failed."""
    for _ in range(REDIRECTS + 1):
        request = urllib.request.Request(
            urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~"),
            headers={"User-Agent": "salon", **headers}, method=method,
        )  # fmt: skip
        response = _opener(is_loopback(url)).open(request, timeout=access.patience)
        assert isinstance(response, http.client.HTTPResponse)
        if response.status in (200, 206):
            return response
        response.close()
        if response.status not in (301, 302, 303, 307, 308):
            detail = f"the server says {response.status} {response.reason}"
            raise answered(response.status, response.headers.get("Retry-After"), detail)
        target = urllib.parse.urljoin(url, response.headers.get("Location", ""))
        if not _may_lead(url, target, access):
            raise Failed("shard_http", f"a redirect to {target!r}, which is refused", again=False)
        url = target
    raise Failed("shard_http", f"more than {REDIRECTS} redirects", again=False)


def _may_lead(url: str, target: str, access: Access) -> bool:
    """Whether a redirect is followed."""
    if scheme_of(target) not in WEB or refusal(target, access) is not None:
        return False
    if scheme_of(url) == "https" and scheme_of(target) != "https":
        return False
    # What listens on this machine only is nothing that others may have asked.
    return is_loopback(url) or not is_loopback(target)


@functools.cache
def _opener(loopback: bool) -> urllib.request.OpenerDirector:
    """For http and https alone; it follows no redirect and takes every status for an answer."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler({} if loopback else None))
    opener.add_handler(urllib.request.HTTPHandler())
    opener.add_handler(urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    return opener


# -- stores ------------------------------------------------------------------------------------


def store_class(scheme: str) -> type[Any]:
    """Raises ImportError, with the way to mend it, where it is not installed."""
    try:
        import fsspec

        return fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ImportError(
            f"{scheme}:// needs packages that are not installed ({error}): "
            "pip install 'salon[remote]'"
        ) from error


def store_of(scheme: str) -> Any:
    # fsspec keeps one for each thread and process, and shares no connection with a fork.
    return store_class(scheme)(use_listings_cache=False)


def _from_store(url: str, access: Access, at: int) -> Part:
    store = store_of(scheme_of(url))

    def connect() -> Any:
        file = store.open(url, "rb", block_size=AHEAD, cache_type="readahead")
        file.seek(at)
        return file

    file = within(access.patience, connect)
    details = getattr(file, "details", None) or {}
    versions = (details.get(name) for name in ("ETag", "etag", "generation", "LastModified"))
    version = next((str(version) for version in versions if version), None)

    def read(size: int) -> bytes:
        return within(access.patience, lambda: file.read(size))

    return Part(read, file.close, at, file.size, version)


def within(seconds: float, call: Callable[[], T]) -> T:
    """Raises TimeoutError where it takes longer; its thread is then left to itself."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(seconds)


# -- commands ----------------------------------------------------------------------------------


def words_of(url: str) -> list[str]:
    words = shlex.split(url.removeprefix("pipe:"))
    if not words:
        raise ValueError("expected a command, as in 'pipe:cat FILE'")
    return words


def _from_command(url: str, access: Access, at: int) -> Part:
    """Run once: only the command knows whether a second time would do good."""
    assert at == 0, at
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (a pipe could fill up, and block it)
    try:
        process = subprocess.Popen(
            words_of(url), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            bufsize=0,
        )  # fmt: skip
    except OSError as error:
        errors.close()
        raise Failed("shard_unreadable", f"it cannot be run: {error}", again=False) from error
    assert process.stdout is not None
    output = process.stdout.fileno()
    poller = select.poll()
    poller.register(output, select.POLLIN)
    silent = Failed(
        "shard_timeout", f"the command was silent for {access.patience:g} s", again=False
    )

    def read(size: int) -> bytes:
        if not poller.poll(1000 * access.patience):
            raise silent
        chunk = os.read(output, size)
        if not chunk:
            try:
                status = process.wait(access.patience)
            except subprocess.TimeoutExpired as error:
                raise silent from error
            if status:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 500))
                said = errors.read().decode("utf-8", "replace").strip()
                detail = f"the command ended with {status}: {said}"
                raise Failed("shard_unreadable", detail, again=False)
        return chunk

    def close() -> None:
        process.kill()
        with process:  # closes its pipe, and waits for it
            errors.close()

    return Part(read, close, 0, None, None)


_CONNECT: dict[str, Callable[[str, Access, int], Part]] = {
    "file": _from_disk,
    **dict.fromkeys(WEB, _from_web),
    **dict.fromkeys(STORES, _from_store),
    "pipe": _from_command,
}
