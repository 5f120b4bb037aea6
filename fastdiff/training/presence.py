"""Signs of life that processes leave for each other, so that a lost or a hung one can be named."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from fastdiff.process.arguments import advised

__all__ = ["BEAT_SECONDS", "WATCH_SECONDS", "Presence"]

BEAT_SECONDS = 0.5
"""Between two signs of life."""
WATCH_SECONDS = 4.0
"""For how long the others are watched, once something has failed: who gives no sign is lost."""


class Presence:
    """This process's signs of life in the store that all of them reach, and what is known of the others.

    A context, in which a thread writes a sign every `BEAT_SECONDS`. A process that hangs in Python still gives signs;
    one that was killed or stopped does not.

    Args:
        store: Where the processes met.
        rank: Of this process.
        size: Processes in all.
        kept_by: The rank whose process keeps the store; None where it is another program, as torchrun.

    Attributes:
        doing: What this process is at, for the others' sentences.
    """

    def __init__(self, store: Any, rank: int, size: int, kept_by: int | None) -> None:
        self._store = PrefixStore("fastdiff/presence", store)
        self._rank = rank
        self._size = size
        self._kept_by = kept_by
        self._names: dict[int, str] = {}
        self._heard: str | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.doing: Callable[[], str] = lambda: "the start"
        for key in (f"ended/{rank}", f"noticed/{rank}", "said"):
            self._store.delete_key(key)
        self._store.set(f"who/{rank}", f"rank {rank} ({socket.gethostname()}, process {os.getpid()})")

    def __enter__(self) -> Self:
        """Begin to give signs."""
        self._stop.clear()
        self._sign(0)
        self._thread = threading.Thread(target=self._beat, name="fastdiff-presence", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def meet(self) -> None:
        """Learn who the others are; all of them are there."""
        self._names = {rank: self._store.get(f"who/{rank}").decode() for rank in range(self._size)}

    def leave(self, reason: str) -> None:
        """Tell the others why this process ends."""
        try:
            self._store.set(f"ended/{self._rank}", reason)
        except RuntimeError:
            # Where the store is gone, nobody is left to be told.
            return

    def missing(self) -> str:
        """A sentence on who is missing, once waiting for the others has failed; takes up to `WATCH_SECONDS`.

        The first that finds one writes it for the others: they may wait for this process and not for that one, and find
        it gone as well.
        """
        try:
            said = self._heard or self._read("said") or self._missing()
            self._store.set("said", said)
            if self._rank == self._kept_by:
                # The others hear it before the store is gone.
                time.sleep(3 * BEAT_SECONDS)
        except RuntimeError:
            if self._heard is not None:
                return self._heard
            if self._kept_by is None:
                return "torchrun was lost, which keeps what the processes tell each other"
            return f"{self._name(self._kept_by)} was lost at {self.doing()}"
        return said

    def _missing(self) -> str:
        self._store.set(f"noticed/{self._rank}", "")
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._read(f"beat/{rank}") for rank in others}
        started = time.monotonic()
        while time.monotonic() - started < WATCH_SECONDS:
            for rank in others:
                if (reason := self._read(f"ended/{rank}")) is not None:
                    return f"{self._name(rank)} ended: {reason}"
            time.sleep(BEAT_SECONDS / 2)
        lost = [rank for rank in others if self._read(f"beat/{rank}") == before[rank]]
        hung = [rank for rank in others if rank not in lost and self._read(f"noticed/{rank}") is None]
        said = [f"{self._name(rank)} was lost at {_step_of(before[rank])}" for rank in lost] or [
            f"{self._name(rank)} lives and was waited for in vain at {_step_of(before[rank])}: it hangs, or needs "
            f"longer than the others wait, which is {advised('wait_seconds')} (the timeout of init_process_group where "
            "a program calls that)"
            for rank in hung
        ]
        return "; ".join(said) or "the connection between the processes was lost, and all of them still live"

    def _name(self, rank: int) -> str:
        return self._names.get(rank, f"rank {rank}")

    def _read(self, key: str) -> str | None:
        if not self._store.check([key]):
            return None
        found: str = self._store.get(key).decode()
        return found

    def _sign(self, number: int) -> None:
        self._store.set(f"beat/{self._rank}", f"{os.getpid()}.{number} {self.doing()}")

    def _beat(self) -> None:
        for number in itertools.count(1):
            if self._stop.wait(BEAT_SECONDS):
                return
            try:
                self._sign(number)
                self._heard = self._heard or self._read("said")
            except RuntimeError:
                # The store went with the process that kept it.
                return


def _step_of(beat: str | None) -> str:
    return "the start" if beat is None else beat.partition(" ")[2]
