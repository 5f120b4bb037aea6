"""Signals that ask a training to end: noted, answered after the step, once all is saved."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["TOGETHER_SECONDS", "Interrupt", "Interrupted"]

TOGETHER_SECONDS = 5.0
"""Between two signals that a launcher may mean as one."""


class Interrupted(KeyboardInterrupt):
    """A training was asked to end and has saved.

    Attributes:
        signal_number: What asked: SIGINT (Ctrl-C), SIGTERM (Slurm, Kubernetes, systemd) or SIGHUP (a closed terminal).
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interrupt:
    """A context in which a first SIGINT, SIGTERM or SIGHUP only sets `requested`; a second one does what it did before.

    Args:
        repeated: The signals come more than once, as launchers of several processes send them: to each, and to the one
            that passes them on. Within `TOGETHER_SECONDS` they are one.

    Outside of the main thread it does nothing. An ignored signal stays ignored, as SIGHUP under nohup. A SIGTERM or
    SIGHUP that the program handles itself stays with the program.

    Attributes:
        requested: The signal that arrived; None so far.
    """

    def __init__(self, *, repeated: bool = False) -> None:
        self._repeated = repeated
        self._since = 0.0
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            previous = signal.getsignal(number)
            # None: not installed from Python, so it could not be put back. Ignored: in the background, say.
            ours = previous not in (None, signal.SIG_IGN) if number == signal.SIGINT else previous == signal.SIG_DFL
            if ours:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and time.monotonic() - self._since < TOGETHER_SECONDS:
            return
        again = self.requested is not None
        self.requested, self._since = number, time.monotonic()
        if again or not self._repeated:
            self._put_back()
        if again:
            signal.raise_signal(number)

    def _put_back(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
