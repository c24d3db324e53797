"""Signals in the middle of a training: where it ends, what is saved, and who listens afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from salon import checkpoint
from salon.callbacks import stop
from salon.callbacks.ema import EMA
from salon.callbacks.save import SaveLast
from salon.types import Batch

BATCHES = 6
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


@pytest.fixture(autouse=True)
def same_listeners_afterwards() -> Iterator[None]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as under `&`
    before = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGCHLD)]
    yield
    assert [signal.getsignal(number) for number in (*NUMBERS, signal.SIGCHLD)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


class Signalled(toy.Toy):
    """Something happens to it in the middle of a batch, in a validation, or before a batch."""

    def __init__(self, place: str = "", then: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.place, self.then = place, then

    def now(self, place: str) -> None:
        if place == self.place:
            self.then()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.now(f"step {batch_idx + 1}")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.now("validation")
        self.log("val/bias", self.judge.bias[0].detach() + self.painter[0].bias[0].detach())

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        self.now(f"data {self.batches_seen}")
        return batch


def kill(*numbers: int, sleep: float = 0.0) -> Callable[[], None]:
    def act() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)
        time.sleep(sleep)

    return act


def fit(model: toy.Toy, path: Path, *, every: int = 100, **options: Any) -> None:
    callbacks = [EMA(decay=0.9), SaveLast(path=path, every=every)]
    toy.fit(model, callbacks, batches=BATCHES, validate_every=4, **options)


def processed(path: Path) -> int:
    progress = checkpoint.read(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return int(progress["total"]["processed"])


@pytest.mark.parametrize(
    ("place", "saved"),
    [("step 2", 2), ("data 3", 3), ("validation", 4)],
    ids=["in a batch", "waiting for data", "in a validation"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_after_a_whole_batch_and_goes_on_exactly(
    number: int, place: str, saved: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rows = tmp_path / "last.ckpt", toy.Rows()
    fit(Signalled(), tmp_path / "whole.ckpt", loggers=[rows])
    with pytest.raises(SystemExit) as ended:
        fit(Signalled(place, kill(number)), path)
    assert ended.value.code == 128 + number
    # As at the end of a batch, wherever it was in its loop: where Lightning knows how to go on.
    progress = checkpoint.read(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    done = {"ready": saved, "started": saved, "processed": saved, "completed": saved - 1}
    assert progress == done
    assert (
        f"saved after batch {saved}; go on with python train.py resume=" in capsys.readouterr().err
    )
    again = toy.Rows()
    fit(Signalled(), path, resume=path, loggers=[again])
    assert again.having("val/bias") == rows.having("val/bias"), "none is left out"
    assert len(rows.having("val/bias")) == 1
    one, other = (checkpoint.read(file) for file in (path, tmp_path / "whole.ckpt"))
    for name, weight in other["state_dict"].items():
        assert torch.equal(one["state_dict"][name], weight), name
    for name, weight in other["ema"]["average"].items():
        assert torch.equal(one["ema"]["average"][name], weight), name
    for part in ("optimizer_states", "lr_schedulers"):
        assert str(one[part]) == str(other[part])
    assert processed(path) == BATCHES


def test_a_batch_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "GRACE", 0.3)
    begin = time.monotonic()
    path = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit) as ended:
        fit(Signalled("step 4", kill(signal.SIGTERM, sleep=30)), path, every=3)
    assert time.monotonic() - begin < 15
    assert ended.value.code == 143
    assert processed(path) == 3, "half a batch is no state to go on from"


def test_waiting_for_data_is_given_up_sooner_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "PAUSE", 0.3)
    path = tmp_path / "last.ckpt"
    begin = time.monotonic()
    with pytest.raises(SystemExit):
        fit(Signalled("data 3", kill(signal.SIGTERM, sleep=15)), path)
    assert time.monotonic() - begin < 10
    assert processed(path) == 3


def test_the_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    path = tmp_path / "last.ckpt"
    with pytest.raises(SystemExit) as ended:
        fit(Signalled("step 3", kill(signal.SIGINT, signal.SIGINT, sleep=30)), path)
    assert time.monotonic() - begin < 15
    assert ended.value.code == 130
    assert not path.exists()


def test_dead_workers_do_not_hide_the_signal(tmp_path: Path) -> None:
    """Where all processes of a run get it, the loader finds its workers dead."""

    def found_dead() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    path = tmp_path / "last.ckpt"
    save = SaveLast(path=path, every=100)
    with pytest.raises(SystemExit) as ended, save.ending():
        toy.fit(Signalled("data 3", found_dead), [save], batches=BATCHES, validate_every=4)
    assert ended.value.code == 143
    assert processed(path) == 3


def test_a_listener_of_the_launcher_has_its_turn_after_the_save(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    heard: list[int] = []
    listener = lambda number, frame: heard.append(processed(path))  # noqa: E731
    before = signal.signal(signal.SIGUSR2, listener)
    try:
        with pytest.raises(SystemExit) as ended:
            fit(Signalled("step 2", kill(signal.SIGUSR2)), path)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (heard, ended.value.code) == ([2], 0)


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        fit(Signalled("step 2", kill(signal.SIGINT)), tmp_path / "last.ckpt")
    finally:
        signal.signal(signal.SIGINT, before)
    assert processed(tmp_path / "last.ckpt") == BATCHES
