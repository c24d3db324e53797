"""What may be opened, how often it is tried, and what an error on the way means."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import random
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from salon.data.reasons import Bad
from salon.data.settings import number

T = TypeVar("T")
WEB, STORES = ("http", "https"), ("s3", "gs", "hf")
SCHEMES = ("file", *WEB, *STORES, "pipe")
# What the packages behind fsspec raise beside OSError; none of them need be installed.
FOREIGN = (
    ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"), ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"), ("httpx", "HTTPError"), ("httpx2", "HTTPError"),
)  # fmt: skip
FINAL = IsADirectoryError, ssl.SSLCertVerificationError, http.client.InvalidURL


class Access(NamedTuple):
    schemes: tuple[str, ...]  # what may be opened, of SCHEMES
    attempts: int  # for each shard, at least 1
    backoff: float  # seconds before the second attempt; twice as long before each further one
    patience: float  # seconds of silence after which an attempt is given up; limits Retry-After too
    cache: str | None  # a folder where remote shards are kept, or None


def make_access(
    *, schemes: Sequence[str], attempts: int, backoff: float, patience: float, cache: str | None
) -> Access:
    """Raises ValueError that names data.access and the setting."""
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if isinstance(schemes, str) or unknown:
        raise ValueError(
            f"data.access.schemes={schemes!r}: expected a list of some of {', '.join(SCHEMES)}"
        )
    number("data.access.attempts", attempts, least=1, whole=True)
    number("data.access.backoff", backoff, least=0)
    number("data.access.patience", patience, least=0.001)
    return Access(tuple(schemes), attempts, backoff, patience, cache)


# -- names -------------------------------------------------------------------------------------


def scheme_of(url: str) -> str:
    if url.startswith("pipe:"):
        return "pipe"
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    return found[1].lower() if found else "file"


def local_path(url: str) -> str:
    if not url.lower().startswith("file://"):
        return url
    parts = urllib.parse.urlsplit(url.replace("?", "%3F"), allow_fragments=False)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url!r}: expected file:///PATH, with three slashes")
    return urllib.request.url2pathname(parts.path)


def is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def refusal(url: str, access: Access) -> str | None:
    """Why it may not be opened, and what allows it; None where it may."""
    scheme = scheme_of(url)
    if scheme not in SCHEMES:
        return f"{scheme}:// is not known. Expected a local file or one of {', '.join(SCHEMES[1:])}"
    if scheme in access.schemes or (scheme == "http" and is_loopback(url)):
        return None
    allowed = ",".join(access.schemes)
    return (
        f"{scheme} is not opened, since data.access.schemes=[{allowed}]. To allow it: "
        f"'data.access.schemes=[{allowed},{scheme}]'"
        + " (it runs commands: only for lists of shards that you wrote)"
        * (scheme == "pipe")
    )


# -- attempts ----------------------------------------------------------------------------------


class Failed(Exception):
    """One attempt."""

    def __init__(self, reason: str, detail: str, *, again: bool, wait: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.again, self.wait = again, wait  # whether another may help, and seconds until then


class Attempts:
    """How often a shard was tried, over all its connections."""

    def __init__(self, access: Access) -> None:
        self.access, self.made = access, 1

    def run(self, attempt: Callable[[], T]) -> T:
        """Raises Bad after the last attempt."""
        while True:
            try:
                return attempt()
            except _expected() as error:
                failed = error if isinstance(error, Failed) else _judged(error)
                if not failed.again or self.made >= self.access.attempts:
                    tried = f" (attempt {self.made})" if self.made > 1 else ""
                    raise Bad(failed.reason, failed.detail + tried) from error
            # Not `random.random`: it would take from a seeded sequence.
            chance = random.SystemRandom().uniform(0.5, 1.5)
            delay = self.access.backoff * 2 ** (self.made - 1) * chance
            time.sleep(max(delay, min(failed.wait, self.access.patience)))
            self.made += 1


def _expected() -> tuple[type[Exception], ...]:
    foreign = [
        getattr(sys.modules[module], name) for module, name in FOREIGN if module in sys.modules
    ]
    return (Failed, OSError, http.client.HTTPException, *foreign)


def _judged(error: Exception) -> Failed:
    """What an error of the file system, the network or a store means."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _judged(error.reason)
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Failed("shard_missing", detail, again=False)
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return Failed("shard_refused", detail, again=False)
    if isinstance(error, TimeoutError):
        return Failed("shard_timeout", detail, again=True)
    if isinstance(error, http.client.IncompleteRead):
        return Failed("shard_short", detail, again=True)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and status >= 400:
        return answered(status, None, detail)
    return Failed("shard_unreadable", detail, again=not isinstance(error, FINAL))


def answered(status: int, retry_after: str | None, detail: str) -> Failed:
    """What another answer of a server than the file means."""
    if status in (404, 410):
        return Failed("shard_missing", detail, again=False)
    if status in (401, 403):
        return Failed("shard_refused", detail, again=False)
    again = status in (408, 429) or status >= 500
    return Failed("shard_http", detail, again=again, wait=_seconds(retry_after))


def _seconds(told: str | None) -> float:
    """Of a Retry-After: a number or a date."""
    if told is None:
        return 0.0
    if told.strip().isdecimal():
        return float(told)
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time())
    return 0.0
