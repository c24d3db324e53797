"""Shards from everywhere: a web server on loopback that misbehaves by script, and a store."""

from __future__ import annotations

import http.server
import multiprocessing
import os
import random
import signal
import ssl
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
import webdataset as wds

from salon.data import transports
from salon.data.openers import Access, expand, opened, size_of
from salon.data.reasons import Bad

BODY = random.Random(0).randbytes(700_000)
ACCESS = Access(("file", "https", "s3", "gs", "hf"), 3, 0.01, 5.0, None)


# -- a web server ------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int = 200
    body: bytes = BODY
    sent: int | None = None  # bytes after which it hangs up; None: all
    silent: bool = False  # it does not hang up then, but says nothing more
    drips: bool = False  # then the rest comes byte by byte, one each 20 ms
    parts: bool = False  # whether it knows Range
    headers: tuple[tuple[str, str], ...] = (("ETag", '"1"'),)
    announced: bool = True  # whether it tells the length


class Web(http.server.ThreadingHTTPServer):
    """Answers each path by its script; the last answer stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: dict[str, list[Answer]] = {}
        self.asked: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        self.over = threading.Event()

    def at(self, path: str, *answers: Answer) -> str:
        self.script[path] = list(answers)
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, *_: object) -> None:
        """Clients hang up: that is what is tested."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked[self.path].append((self.command, wanted))
        answers = self.server.script[self.path]
        get = self.command == "GET"
        answer = answers.pop(0) if get and len(answers) > 1 else answers[0]
        start = int(wanted[len("bytes=") : -1]) if wanted and answer.parts else 0
        self.send_response(206 if start else answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.announced:
            self.send_header("Content-Length", str(len(answer.body) - start))
        if start:
            whole = len(answer.body)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        if get:
            self.wfile.write(answer.body[start : answer.sent])
            rest = answer.body[answer.sent :] if answer.drips and answer.sent is not None else b""
            for byte in rest:
                if self.server.over.wait(0.02):
                    return
                self.wfile.write(bytes([byte]))
            if answer.silent:
                self.server.over.wait(20)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def read(url: str, access: Access = ACCESS, size: int = 65_536) -> bytes:
    chunks = []
    with opened(url, access) as stream:
        while chunk := stream.read(size):
            assert len(chunk) <= size
            chunks.append(chunk)
        assert stream.read(size) == b""
    return b"".join(chunks)


def reason(url: str, access: Access = ACCESS) -> str:
    with pytest.raises(Bad) as caught:
        read(url, access)
    return caught.value.reason


def test_a_file_comes_whole_from_loopback_without_a_permission(web: Web) -> None:
    url = web.at("/a.tar", Answer())
    assert read(url) == BODY
    assert size_of(url, ACCESS) == len(BODY)
    assert web.asked["/a.tar"] == [("GET", None), ("HEAD", None)]
    assert read(web.at("/empty.tar", Answer(body=b""))) == b""
    assert read(web.at("/untold.tar", Answer(announced=False))) == BODY
    assert size_of(web.at("/untold.tar", Answer(announced=False)), ACCESS) is None
    assert size_of(web.at("/none.tar", Answer(404)), ACCESS) is None


def test_a_name_is_sent_as_it_is_meant(web: Web) -> None:
    web.at("/a%20%C3%BC.tar?b=1&c=%2F", Answer())
    assert read(web.at("/", Answer()) + "a ü.tar?b=1&c=%2F") == BODY


@pytest.mark.parametrize(
    ("status", "expected", "times"),
    [
        (404, "shard_missing", 1), (410, "shard_missing", 1), (401, "shard_refused", 1),
        (403, "shard_refused", 1), (400, "shard_http", 1), (204, "shard_http", 1),
        (429, "shard_http", 3), (500, "shard_http", 3), (503, "shard_http", 3),
    ],
)  # fmt: skip
def test_what_a_server_answers_is_told_apart(
    status: int, expected: str, times: int, web: Web
) -> None:
    url = web.at("/a.tar", Answer(status, b""))
    with pytest.raises(Bad, match=f"the server says {status}") as caught, opened(url, ACCESS):
        pass
    assert caught.value.reason == expected
    assert len(web.asked["/a.tar"]) == times


def test_a_server_that_recovers_is_read(web: Web) -> None:
    assert read(web.at("/a.tar", Answer(500), Answer(503), Answer())) == BODY
    assert len(web.asked["/a.tar"]) == 3


def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_waits_double_with_some_chance_that_no_seed_touches(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.at("/a.tar", Answer(500, b""))
    slept = waits(monkeypatch)
    random.seed(0)
    before = random.getstate()
    access = ACCESS._replace(attempts=6, backoff=1.0)
    assert reason(url, access) == reason(url, access) == "shard_http"
    assert random.getstate() == before
    for number, seconds in enumerate(slept):
        assert 0.5 <= seconds / 2 ** (number % 5) <= 1.5
    assert len(slept) == len(set(slept)) == 10


@pytest.mark.parametrize(
    ("told", "low", "high"), [("2", 2, 2), ("9000", 5, 5), ("date", 1, 4), ("soon", 0, 0.1)]
)
def test_retry_after_is_kept_to_as_far_as_patience_goes(
    told: str, low: float, high: float, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told == "date":
        moment = datetime.now(UTC) + timedelta(seconds=4)
        told = moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
    url = web.at("/a.tar", Answer(429, b"", headers=(("Retry-After", told),)), Answer())
    slept = waits(monkeypatch)
    assert read(url) == BODY
    assert len(slept) == 1
    assert low <= slept[0] <= high


def test_a_short_body_is_short_after_all_attempts(web: Web) -> None:
    """Without a mark that it is the same file nothing is pieced together."""
    url = web.at("/a.tar", Answer(sent=500_000))
    with pytest.raises(Bad, match="500,000 bytes came of the 700,000") as caught:
        read(url)
    assert caught.value.reason == "shard_short"
    assert len(web.asked["/a.tar"]) == 3
    url = web.at("/b.tar", Answer(sent=500_000, headers=()), Answer(headers=()))
    assert reason(url) == "shard_short"


def test_what_came_before_a_break_is_given_out(web: Web) -> None:
    got: list[bytes] = []
    with opened(web.at("/a.tar", Answer(sent=500_000)), ACCESS) as stream, pytest.raises(Bad):
        got.extend(iter(lambda: stream.read(65_536), b""))
    assert b"".join(got) == BODY[:500_000]


def test_a_body_that_breaks_off_goes_on_where_it_stopped(web: Web) -> None:
    cut = (Answer(sent=200_000, parts=True), Answer(sent=450_000, parts=True), Answer(parts=True))
    assert read(web.at("/a.tar", *cut)) == BODY
    assert web.asked["/a.tar"] == [
        ("GET", None), ("GET", "bytes=200000-"), ("GET", "bytes=450000-"),
    ]  # fmt: skip


def test_without_parts_it_is_read_again_up_to_there(web: Web) -> None:
    assert read(web.at("/a.tar", Answer(sent=200_000), Answer())) == BODY


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    "other",
    [Answer(headers=(("ETag", '"2"'),)), Answer(body=BODY[:-1]), Answer(headers=())],
    ids=["etag", "length", "no etag"],
)
def test_another_file_is_not_pieced_to_the_first(other: Answer, parts: bool, web: Web) -> None:
    url = web.at("/a.tar", Answer(sent=200_000), other._replace(parts=parts))
    with pytest.raises(Bad, match="it changed") as caught:
        read(url)
    assert caught.value.reason == "shard_unreadable"
    assert len(web.asked["/a.tar"]) == 2


def test_silence_is_given_up_and_what_follows_it_is_read(web: Web) -> None:
    access = ACCESS._replace(attempts=2, patience=0.2)
    begin = time.monotonic()
    silent = Answer(sent=200_000, silent=True, parts=True)
    assert reason(web.at("/a.tar", silent), access) == "shard_timeout"
    assert reason(web.at("/b.tar", silent._replace(sent=0)), access) == "shard_timeout"
    assert 0.8 <= time.monotonic() - begin < 4
    assert read(web.at("/c.tar", silent, Answer(parts=True)), access) == BODY


def test_what_only_drips_is_given_up_and_what_follows_it_is_read(web: Web) -> None:
    """It is never silent, and at a byte each 20 ms a gigabyte would take eight months."""
    access = ACCESS._replace(attempts=2, patience=0.3)
    drips = Answer(sent=200_000, drips=True, parts=True)
    begin = time.monotonic()
    assert reason(web.at("/a.tar", drips), access) == "shard_timeout"
    assert reason(web.at("/b.tar", drips._replace(sent=0)), access) == "shard_timeout"
    assert time.monotonic() - begin < 6
    assert read(web.at("/c.tar", drips, Answer(parts=True)), access) == BODY


def test_a_reader_that_takes_its_time_is_not_taken_for_a_slow_server(web: Web) -> None:
    with opened(web.at("/a.tar", Answer()), ACCESS._replace(attempts=1, patience=0.2)) as stream:
        found = b""
        while chunk := stream.read(10_000):
            found += chunk
            time.sleep(0.01)
    assert found == BODY


def test_nobody_listening_is_unreadable(web: Web) -> None:
    url = web.at("/a.tar", Answer())
    web.shutdown()
    web.server_close()
    with pytest.raises(Bad, match=r"refused.*attempt 3") as caught, opened(url, ACCESS):
        pass
    assert caught.value.reason == "shard_unreadable"


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "http://192.0.2.1/a.tar", "ftp://127.0.0.1/a", "/loop.tar"]
)
def test_redirects_lead_to_allowed_places_only(target: str, web: Web) -> None:
    moved = Answer(302, b"", headers=(("Location", target),))
    url = web.at("/loop.tar", moved)
    with pytest.raises(Bad, match="redirect") as caught, opened(url, ACCESS):
        pass
    assert caught.value.reason == "shard_http"
    assert len(web.asked["/loop.tar"]) == (6 if target == "/loop.tar" else 1)


def test_a_redirect_is_followed_also_to_the_size_and_to_a_part(web: Web) -> None:
    web.at("/b.tar", Answer(sent=200_000, parts=True), Answer(parts=True))
    url = web.at("/a.tar", Answer(301, b"", headers=(("Location", "b.tar"),)))
    assert size_of(url, ACCESS) == len(BODY)
    assert read(url) == BODY
    assert [method for method, _ in web.asked["/b.tar"]] == ["HEAD", "GET", "GET"]


def test_https_leads_to_no_http_and_a_stranger_not_to_this_machine() -> None:
    may_lead = transports._may_lead
    access = ACCESS._replace(schemes=("file", "http", "https"))
    assert may_lead("https://a.org/x", "https://b.org/x", access)
    assert may_lead("http://a.org/x", "https://b.org/x", access)
    assert may_lead("http://a.org/x", "http://b.org/x", access)
    assert not may_lead("https://a.org/x", "http://b.org/x", access)
    assert not may_lead("http://a.org/x", "http://b.org/x", ACCESS)
    assert not may_lead("http://a.org/x", "http://127.0.0.1/x", access)
    assert not may_lead("https://a.org/x", "https://localhost/x", access)


def test_a_certificate_that_nobody_vouches_for_is_refused(web: Web, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "both.pem").write_bytes(certificate + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    web.socket = context.wrap_socket(web.socket, server_side=True)
    url = web.at("/a.tar", Answer()).replace("http://", "https://")
    with pytest.raises(Bad, match="CERTIFICATE_VERIFY_FAILED") as caught, opened(url, ACCESS):
        pass
    assert caught.value.reason == "shard_unreadable"
    assert "attempt" not in str(caught.value)


def test_a_shard_is_never_held_in_memory(web: Web) -> None:
    """It starts before its end was sent, and asks for no more than is read."""
    url = web.at("/a.tar", Answer(sent=300_000, silent=True))
    with opened(url, ACCESS) as stream:
        assert stream.read(1000) == BODY[:1000]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background job ignores the signal, and so does Python there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_comes_through_at_once(web: Web) -> None:
    url = web.at("/a.tar", Answer(sent=0, silent=True))
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), opened(url, ACCESS._replace(patience=10)) as stream:
        stream.read(1)
    assert time.monotonic() - begin < 2


# -- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path: Path) -> Access:
    return ACCESS._replace(cache=str(tmp_path / "cache"))


def gets(web: Web, path: str) -> int:
    return sum(method == "GET" for method, _ in web.asked[path])


def test_a_shard_is_fetched_once_and_kept_whole(web: Web, cached: Access, tmp_path: Path) -> None:
    url = web.at("/a.tar", Answer(sent=200_000, parts=True), Answer())
    assert read(url, cached) == read(url, cached) == BODY
    assert gets(web, "/a.tar") == 2  # one, in two parts
    names = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert names in ([".lock", ".tar"], [".tar"])


@pytest.mark.parametrize("change", ["cut", "announced"])
def test_an_entry_of_another_size_is_fetched_anew(
    change: str, web: Web, cached: Access, tmp_path: Path
) -> None:
    url = web.at("/a.tar", Answer())
    assert read(url, cached) == BODY
    (entry,) = (tmp_path / "cache").glob("*.tar")
    if change == "cut":
        os.truncate(entry, 300_000)
    else:
        web.at("/a.tar", Answer(body=BODY[:1000]))
    assert read(url, cached) == (BODY if change == "cut" else BODY[:1000])
    assert gets(web, "/a.tar") == 2


def test_an_entry_serves_while_the_server_is_away(web: Web, cached: Access) -> None:
    url = web.at("/a.tar", Answer())
    assert read(url, cached) == BODY
    web.at("/a.tar", Answer(503, b""))
    assert read(url, cached) == BODY
    assert web.asked["/a.tar"] == [("GET", None), ("HEAD", None)]


def test_nothing_half_is_kept(web: Web, cached: Access, tmp_path: Path) -> None:
    assert reason(web.at("/a.tar", Answer(sent=200_000)), cached) == "shard_short"
    assert read(web.at("/untold.tar", Answer(announced=False)), cached) == BODY
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}


def test_one_base_name_is_two_entries(web: Web, cached: Access, tmp_path: Path) -> None:
    """Not so in webdataset, to which both of these are the same file."""
    urls = [web.at(f"/{name}/00000.tar", Answer(body=name.encode())) for name in "ab"]
    assert [read(url, cached) for url in urls] == [b"a", b"b"]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    names = {wds.cache.url_to_cache_name(url) for url in urls}
    assert names == {"00000.tar"}


def test_local_files_are_not_kept(cached: Access, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(BODY)
    assert read(str(tmp_path / "a.tar"), cached) == BODY
    assert not (tmp_path / "cache").exists()


def _fetch(url: str, access: Access, start: Any, told: Any) -> None:
    start.wait()
    told.put(read(url, access) == BODY)


def test_two_processes_fetch_once(web: Web, cached: Access) -> None:
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(2), context.SimpleQueue()
    url = web.at("/a.tar", Answer())
    both = [context.Process(target=_fetch, args=(url, cached, start, told)) for _ in range(2)]
    for one in both:
        one.start()
    assert [told.get(), told.get()] == [True, True]
    for one in both:
        one.join()
    assert gets(web, "/a.tar") == 1


# -- local files -------------------------------------------------------------------------------


def test_local_files_and_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a b?.tar"
    path.write_bytes(BODY)
    for url in (str(path), f"file://{tmp_path}/a%20b%3F.tar", f"file://{tmp_path}/a b?.tar"):
        assert read(url) == BODY
        assert size_of(url, ACCESS) == len(BODY)
    assert reason(str(tmp_path / "nowhere.tar")) == reason(f"{path}/x") == "shard_missing"
    assert reason(str(tmp_path)) == "shard_unreadable"
    os.mkfifo(tmp_path / "fifo.tar")
    assert reason(str(tmp_path / "fifo.tar")) == "shard_unreadable"
    assert size_of(str(tmp_path / "nowhere.tar"), ACCESS) is None

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(transports, "local_path", denied)  # root may read everything
    assert reason(str(path)) == "shard_refused"


def test_a_mistake_of_ours_is_no_bad_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("a mistake")

    monkeypatch.setattr(transports, "local_path", broken)
    with pytest.raises(AttributeError, match="a mistake"):
        read("a.tar")


# -- stores ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = fsspec.filesystem("s3")
        store.mkdir("bucket")
        for name in ("00001.tar", "00000.tar", "notes.txt"):
            store.pipe(f"bucket/dir/{name}", name.encode() + BODY)
        yield "s3://bucket/dir"
    moto.stop()


def test_shards_of_a_store(bucket: str, cached: Access, tmp_path: Path) -> None:
    two = [f"{bucket}/00000.tar", f"{bucket}/00001.tar"]
    for pattern in ("/", "/*.tar", "/0000[01].tar", "/{00000..00001}.tar"):
        assert expand("data.train", bucket + pattern, ACCESS) == two
    assert read(two[0]) == b"00000.tar" + BODY
    assert size_of(two[1], ACCESS) == len(BODY) + 9
    assert reason(f"{bucket}/00002.tar") == reason("s3://nowhere/a.tar") == "shard_missing"
    with pytest.raises(ValueError, match=r"data\.train=.*no shard there \('s3://bucket/dir/\*.zip"):
        expand("data.train", f"{bucket}/*.zip", ACCESS)
    for _ in range(2):
        assert [read(url, cached)[:9] for url in two] == [b"00000.tar", b"00001.tar"]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_a_store_that_breaks_off_is_resumed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import EndpointConnectionError
    from s3fs.core import S3File

    given, times = S3File.read, iter(range(99))
    faults: dict[int, Callable[[], Exception]] = {
        2: lambda: ConnectionResetError("reset"),
        5: lambda: EndpointConnectionError(endpoint_url="x"),
    }

    def faulty(self: S3File, size: int) -> bytes:
        number = next(times)
        if number in faults:
            raise faults[number]()
        return given(self, size)

    monkeypatch.setattr(S3File, "read", faulty)
    assert read(f"{bucket}/00000.tar") == b"00000.tar" + BODY
    assert next(times) > 12
    monkeypatch.setattr(S3File, "read", lambda self, size: time.sleep(2))
    access = ACCESS._replace(attempts=1, patience=0.2)
    begin = time.monotonic()
    assert reason(f"{bucket}/00000.tar", access._replace(patience=0.5)) == "shard_timeout"
    assert time.monotonic() - begin < 1.9
    monkeypatch.setattr(S3File, "read", lambda self, size: b"")
    assert reason(f"{bucket}/00000.tar") == "shard_short"


def test_a_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"gs:// needs .*pip install 'salon\[remote\]'"):
        expand("data.train", "gs://bucket/00000.tar", ACCESS)


# -- commands ----------------------------------------------------------------------------------

PIPES = ACCESS._replace(schemes=("file", "pipe"), patience=0.3)


def test_a_command_needs_a_permission_and_gets_no_shell(tmp_path: Path) -> None:
    path, owned = tmp_path / "a.tar", tmp_path / "owned"
    path.write_bytes(BODY)
    url = f"pipe:cat {path}; touch {owned}"
    with pytest.raises(ValueError, match=r"data\.train=.*'data\.access\.schemes=\[.*,pipe\]'"):
        expand("data.train", url, ACCESS)
    with pytest.raises(ValueError, match="pipe is not opened"):
        read(url, ACCESS)
    assert expand("data.train", url, PIPES) == [url]
    assert reason(url, PIPES) == "shard_unreadable"
    assert read(f"pipe:echo $(touch {owned}) > {owned}", PIPES).startswith(b"$(touch")
    assert not owned.exists()
    assert read(f"pipe:cat '{path}'", PIPES) == BODY
    assert size_of(f"pipe:cat '{path}'", PIPES) is None


def test_why_a_command_gave_nothing(tmp_path: Path) -> None:
    with pytest.raises(Bad, match=r"ended with 1: cat: .*nowhere.*No such file") as caught:
        read(f"pipe:cat {tmp_path}/nowhere", PIPES)
    assert caught.value.reason == "shard_unreadable"
    assert reason("pipe:no-such-command x", PIPES) == "shard_unreadable"
    begin = time.monotonic()
    assert reason("pipe:sleep 20", PIPES) == "shard_timeout"
    with opened("pipe:yes", PIPES) as stream:  # left before its end
        assert stream.read(4) == b"y\ny\n"
    assert time.monotonic() - begin < 3


# -- names -------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    folder = tmp_path / "shards[1]"
    folder.mkdir()
    for number in (2, 0, 1):
        (folder / f"0000{number}.tar").touch()
    return [str(folder / f"0000{number}.tar") for number in range(3)]


def test_folders_globs_braces_and_lists_of_local_files(
    shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shards[0]).parent
    for pattern in (str(folder), f"file://{folder}", f"{folder}/{{00000..00002}}.tar"):
        assert expand("data.train", pattern, ACCESS) == shards
    assert expand("data.train", f"{folder.parent}/*/0000[02].tar", ACCESS) == shards[::2]
    assert expand("data.train", f"{shards[2]}::{shards[0]}", ACCESS) == [shards[2], shards[0]]
    assert expand("data.train", [shards[1], f"{shards[2]}"], ACCESS) == shards[1:]
    monkeypatch.chdir(folder)
    (folder / "pipe:touch owned; x.tar").touch()
    (found,) = expand("data.train", "pipe*.tar", ACCESS)
    assert found == "./pipe:touch owned; x.tar"
    assert read(found, PIPES) == b""
    assert not (folder / "owned").exists()


def test_lists_of_urls() -> None:
    names = expand("data.train", "https://a.org/{0..1}.tar?x={a,b}::https://b.org/c.tar", ACCESS)
    assert names == [
        "https://a.org/0.tar?x=a", "https://a.org/0.tar?x=b",
        "https://a.org/1.tar?x=a", "https://a.org/1.tar?x=b", "https://b.org/c.tar",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("nowhere/*.tar", r"no shard there \('nowhere/\*\.tar' matches no \.tar"),
        ("", "no shard there"),
        ("a{0..1.tar", "[Uu]nbalanced"),
        ("https://a.org/*.tar", "cannot be asked which files"),
        ("https://a.org/dir/", "cannot be asked which files"),
        ("http://a.org/a.tar", r"http is not opened.*'data\.access\.schemes=\[file,.*,http\]'"),
        ("http://127.0.0.1.a.org/a.tar", "http is not opened"),
        ("http://localhost@a.org/a.tar", "http is not opened"),
        ("ftp://a.org/a.tar", r"ftp:// is not known\. Expected a local file or one of http,"),
        ("file://host/a.tar", "three slashes"),
        ("pipe:cat a", "it runs commands"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_key(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.val=.*{why}"):
        expand("data.val", pattern, ACCESS)
    with pytest.raises(ValueError, match=r"^data\.val=.*No closing quotation"):
        expand("data.val", "pipe:cat 'a", PIPES)


def test_local_files_can_be_forbidden(tmp_path: Path) -> None:
    access = ACCESS._replace(schemes=("https",))
    with pytest.raises(ValueError, match="file is not opened"):
        expand("data.train", str(tmp_path), access)
    with pytest.raises(ValueError, match="file is not opened"):
        read(str(tmp_path / "a.tar"), access)


def test_the_environment_of_webdataset_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(b"a")
    (tmp_path / "b.tar").write_bytes(b"b")
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}/a={tmp_path}/b")
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WDS_NAME", str(tmp_path / "b"))
    assert read(str(tmp_path / "a.tar")) == b"a"
    assert wds.shardlists.expand_urls("${NAME}.tar") == [str(tmp_path / "b.tar")]
    with pytest.raises(ValueError, match="no shard there"):
        expand("data.train", "${NAME}.tar", ACCESS)
    assert not (tmp_path / "cache").exists()
