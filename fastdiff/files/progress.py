"""Progress of long work: a bar where one is asked for, and lines in the log under the name "fastdiff"."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import Logger

__all__ = ["LOG_SECONDS", "duration", "watched"]

LOG_SECONDS = 15.0
"""Between two lines in the log."""


def duration(seconds: float) -> str:
    """Seconds as people read them: 8 s, 2:05, 1:02:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def watched(
    name: str, total: int, *, unit: str, shows: bool, done: int = 0, logger: Logger | None = None
) -> Iterator[Callable[[int, str], None]]:
    """Watch work of `total` parts.

    Args:
        name: What is done.
        total: Parts in all.
        unit: What a part is called, in the plural: "steps".
        shows: Draw a bar on the terminal, which stays there.
        done: Parts that were done before.
        logger: Gets a line of level INFO every `LOG_SECONDS`, and one at the end.

    Yields:
        A function of the parts done so far and of a few more words, which may be empty.
    """
    started = last_line = time.monotonic()

    def said(now: int) -> str:
        elapsed = time.monotonic() - started
        left = elapsed / (now - done) * (total - now) if now > done else 0.0
        ends = f"{duration(left)} left" if now < total else f"took {duration(elapsed)}"
        return f"{now:,} of {total:,} {unit}, {ends}"

    def log(now: int, more: str) -> None:
        nonlocal last_line
        if logger is not None and (now == total or time.monotonic() - last_line >= LOG_SECONDS):
            last_line = time.monotonic()
            logger.info("%s: %s%s", name, said(now), f", {more}" if more else "")

    if not shows:
        yield log
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[detail]}"))
    with Progress(*columns) as bars:
        task = bars.add_task(name, total=total, completed=done, detail="")

        def show(now: int, more: str) -> None:
            bars.update(task, completed=now, detail=f"{said(now)}{f', {more}' if more else ''}")
            log(now, more)

        yield show
