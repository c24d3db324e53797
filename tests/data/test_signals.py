"""SIGTERM, as a scheduler sends it: a run with workers ends soon, says so, and leaves nobody."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from salon import checkpoint
from salon.callbacks.drops import REPORT
from tars import folder_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0  # seconds; 1 to 3 where the machine has nothing else to do, 11 with a silent server
ENDLESS = [
    "model=autoencoder/tiny", "model.network={channels: [16], latent_channels: 4}", "logger=csv",
    "budget={batches: 1000000, validate_every: 1000000, checkpoint_every: 2}", "batch_size=8",
    "data=shards", "data.resolution=16", "data.val_samples=16", "data.window=8", "data.workers=2",
]  # fmt: skip


def alive(group: int) -> list[str]:
    """The processes of a group, but those that only wait to be counted."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def training(folder: Path, *overrides: str) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process group of its own, which has trained and saved; what it says is in log."""
    command = [sys.executable, "train.py", *ENDLESS, *overrides, f"hydra.run.dir={folder}"]
    folder.mkdir()
    with open(folder / "log", "wb") as log:
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        saved = folder / checkpoint.LAST
        assert until(lambda: saved.exists() or run.poll() is not None, 240), said(folder)
        assert run.poll() is None, said(folder)
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def said(folder: Path) -> str:
    return (folder / "log").read_text()[-3000:]


def assert_terminated(run: subprocess.Popen[bytes], folder: Path) -> None:
    begin = time.monotonic()
    assert until(lambda: run.poll() is not None and not alive(run.pid), LIMIT), alive(run.pid)
    print(f"ended after {time.monotonic() - begin:.1f} s")
    assert run.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM), said(folder)
    assert checkpoint.read(folder)["salon"]["version"] == 1
    assert (folder / REPORT).exists(), "what was left out is written down all the same"


@pytest.mark.parametrize(
    ("start", "whole"),
    [("fork", False), ("spawn", False), ("fork", True)],
    ids=["fork", "spawn", "fork, workers too"],
)
def test_a_run_with_workers_ends_soon_and_leaves_nobody(
    start: str, whole: bool, tmp_path: Path
) -> None:
    """Sent to one process, as `kill` does, or to all of them, as `scancel` and systemd do."""
    folder = tmp_path / "run"
    shards = folder_of(tmp_path / "shards", shards=4, each=8)
    data = f"data.train={shards}", f"data.val={shards}", f"data.start_method={start}"
    with training(folder, *data) as run:
        assert len(alive(run.pid)) >= 3, "the run and its two workers"
        (os.killpg if whole else os.kill)(run.pid, signal.SIGTERM)
        assert_terminated(run, folder)
    if not whole:  # else the loader may complain of workers that it finds dead
        assert "Traceback" not in said(folder)


class Falling(http.server.ThreadingHTTPServer):
    """Serves a folder; from `silent` on it takes requests and does not answer."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = str(folder)
        self.silent, self.over = threading.Event(), threading.Event()
        self.waiting = 0

    def handle_error(self, *_: object) -> None:
        """Clients are killed: that is what is tested."""


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Falling

    def translate_path(self, path: str) -> str:
        return self.server.folder + path

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.silent.is_set():
            self.server.waiting += 1
            self.server.over.wait()
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Falling]:
    web = Falling(folder_of(tmp_path / "shards", shards=4, each=8))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
    web.over.set()
    web.shutdown()
    web.server_close()


def test_a_run_that_waits_for_a_silent_server_ends_as_soon(server: Falling, tmp_path: Path) -> None:
    """Its workers would wait for minutes, and it for them."""
    folder = tmp_path / "run"
    train = f"http://127.0.0.1:{server.server_port}/{{00000..00003}}.tar"
    with training(folder, f"data.train='{train}'", f"data.val={server.folder}") as run:
        server.silent.set()
        assert until(lambda: server.waiting >= 2, 60), "both workers ask for a shard"
        time.sleep(2)  # in which the run uses up what they had ready
        os.kill(run.pid, signal.SIGTERM)
        assert_terminated(run, folder)
