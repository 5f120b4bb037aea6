"""A command with a hard limit of time, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

# Between SIGTERM and SIGKILL.
GRACE_SECONDS = 1.0
# A process that hangs in the driver may outlive SIGKILL; it is left behind after these.
LOST_SECONDS = 5.0
_LOOK_SECONDS = 0.02
# Of <sys/prctl.h>.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Ending(NamedTuple):
    """How a command ended.

    Attributes:
        code: Its exit status, minus a signal's number; None where not even SIGKILL ended it.
        cut_off: It was stopped at its limit.
        seconds: How long it ran.
    """

    code: int | None
    cut_off: bool
    seconds: float

    def in_words(self) -> str | None:
        """What went wrong, or None."""
        if self.cut_off:
            return f"cut off after {self.seconds:.0f} s" + (", and not even killed" if self.code is None else "")
        if self.code:
            what = f"by {signal.Signals(-self.code).name}" if self.code < 0 else f"with exit status {self.code}"
            return f"died {what}"
        return None


def run_limited(command: list[str], seconds: float, log: IO[bytes], environment: Mapping[str, str]) -> Ending:
    """Run a command in a session of its own; at its limit, or an exception here, the whole session is ended.

    Args:
        command: The program and its arguments.
        seconds: The limit.
        log: What it prints goes there.
        environment: Its variables.
    """
    begun = time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
    )
    cut_off = True
    try:
        while time.monotonic() - begun < seconds:
            # Not reaped yet, so that its number stays the group's.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                cut_off = False
                break
            time.sleep(_LOOK_SECONDS)
    finally:
        ran = time.monotonic() - begun
        _end_group(process, gently=cut_off)
    return Ending(process.returncode, cut_off, ran)


def _end_group(process: subprocess.Popen[bytes], gently: bool) -> None:
    if gently:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < end:
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
            time.sleep(_LOOK_SECONDS)
    # Members of the group may live on without their leader.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LOST_SECONDS)


def adopt_orphans() -> None:
    """Become the parent of what sections leave behind, so that `end_orphans` finds it (Linux)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent is gone (Linux)."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_orphans(keep: tuple[int, ...] = ()) -> list[str]:
    """Kill this process's children, those in sessions of their own too.

    Args:
        keep: Children to leave alone, by number.

    Returns:
        The names of the killed.
    """
    names = []
    end = time.monotonic() + LOST_SECONDS
    # A killed one's children become ours in their turn.
    while time.monotonic() < end and (found := [child for child in _children() if child[0] not in keep]):
        for number, name, is_dead in found:
            if is_dead:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(number, os.WNOHANG)
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
                names.append(name)
        time.sleep(_LOOK_SECONDS)
    return sorted(set(names))


def _children() -> Iterator[tuple[int, str, bool]]:
    """Number and name of each child, and whether it only waits to be reaped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        # The name is in brackets and may hold anything.
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid():
            yield int(folder.name), name, state == "Z"


def _prctl(option: int, value: int) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)
