"""Signals that end a training, between two batches where there is time for it.

    SIGINT   Ctrl-C         ends after the batch; a second one at once               exit code 130
    SIGTERM  a scheduler    ends after the batch, or after GRACE seconds within it             143
    SIGUSR1  SLURM, which is about to take the machine: as SIGTERM, and back into the queue      0
    SIGUSR2  where somebody listens to it (submitit): as SIGTERM, and then that listener's turn

A GAN's discriminator steps before its generator: what stands between is no state to go on from.
So the signals only leave a note, which `SaveLast` reads where a batch ends. Where no batch ends in
time, as with a server that does not answer, a timer ends the run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from salon import slurm

GRACE = 20.0  # seconds for a batch that is being trained on; SLURM gives 30, Kubernetes too
PAUSE = 2.0  # seconds between batches: waiting for data, or validating, can be broken off


class Signals:
    """Listens from `listen` to `leave`. Each rank for itself; forked workers do not."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal that came
        self.within = False  # a batch, at whose half nothing can be saved
        self._before: dict[int, Any] = {}
        self._process = 0

    def listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may
        self._process = os.getpid()
        self.asked, self.within = None, False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if slurm.inside():
            numbers.append(slurm.WARNING)
        if callable(signal.getsignal(signal.SIGUSR2)):
            numbers.append(signal.SIGUSR2)
        for number in numbers:
            # What a shell has told us to ignore (`nohup`, `&` in a script) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._set(number, self._note)
        self._set(signal.SIGALRM, self._late)

    def no_hurry(self) -> None:
        """Saving may take the time that it takes: a file is whole or not there."""
        if self._before and os.getpid() == self._process:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def leave(self) -> None:
        self.no_hurry()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _set(self, number: int, handler: Callable[[int, FrameType | None], None] | int) -> None:
        self._before[number] = signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.asked is not None:  # asked twice
            raise SystemExit(128 + number)
        self.asked = number
        # Workers that got the signal too are dead; what this batch needs of them is here already.
        self._set(signal.SIGCHLD, signal.SIG_DFL)
        if not self.within:
            signal.setitimer(signal.ITIMER_REAL, PAUSE)
        elif number != signal.SIGINT:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        else:
            print(
                "\nending after this batch; Ctrl-C again ends at once", file=sys.stderr, flush=True
            )

    def _late(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            raise SystemExit(self.code)

    @property
    def code(self) -> int:
        """What the process ends with."""
        return 128 + (self.asked or 0)

    def last_words(self) -> tuple[int, str]:
        """What the process ends with, and why, once all that can be saved is; SLURM is asked to
        start it again."""
        if self.asked == slurm.WARNING and slurm.inside():
            return slurm.requeue()
        listener = self._before.get(self.asked or 0)
        if self.asked == signal.SIGUSR2 and callable(listener):
            listener(self.asked, None)
            return 0, "preempted"
        names: dict[int, str] = {signal.SIGINT: "stopped", signal.SIGTERM: "terminated"}
        return self.code, names.get(self.asked or 0, "preempted")
