"""Progress on the terminal: loss, images per second and time left. As bars, or as lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from fastdiff.files.progress import duration

if TYPE_CHECKING:
    from fastdiff.training.config import TrainConfig
    from fastdiff.training.monitor import Look
    from fastdiff.training.trainer import TrainProgress

__all__ = ["Bars", "about_look", "duration"]

LINE_SECONDS = 15.0
"""Between two lines about one thing, where there is no terminal."""


class Bars:
    """Progress bars, one below the other; a context.

    Args:
        console: Where to draw; the standard output when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._draws = self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._draws,
            refresh_per_second=4,
        )

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Draw a last time, and leave the bars on the screen."""
        self._progress.stop()

    def training(
        self, name: str, config: TrainConfig, step: int = 0
    ) -> tuple[Callable[[TrainProgress], None], Callable[[int], None]]:
        """A bar for `Trainer.run`, which starts at `step`: its `progress` and its `on_step`."""
        update = self._bar(name, config.steps, step)
        started = time.monotonic()
        loss, looked = "", 0.0

        def show(progress: TrainProgress) -> None:
            nonlocal loss, looked
            loss, looked = f"loss {progress.loss:.4f}  ", progress.seconds_looked
            write(progress.step)
            if progress.look is not None:
                self.say(about_look(progress.look))

        def advance(done: int) -> None:
            # The last step has an entry in the log as well.
            if done < config.steps:
                write(done)

        def write(done: int) -> None:
            elapsed = max(time.monotonic() - started, 1e-9)
            speed = max(done - step, 1) / elapsed
            ends = f"took {duration(elapsed)}"
            left = f"{duration((config.steps - done) / speed)} left" if done < config.steps else ends
            images = max(done - step, 1) / max(elapsed - looked, 1e-9) * config.batch_size
            update(done, f"step {done:,}  {loss}{images:,.{0 if images >= 10 else 1}f} images/s  {left}")

        return show, advance

    def say(self, text: str) -> None:
        """A line above the bars."""
        if text:
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def counting(self, name: str, total: float, unit: str = "images") -> Callable[[float], None]:
        """A bar for `total` things; call the result with the number done so far, fractions included."""
        update = self._bar(name, total)
        started = time.monotonic()

        def show(done: float) -> None:
            elapsed = max(time.monotonic() - started, 1e-9)
            speed = done / elapsed
            left = f"{duration((total - done) / speed)} left" if 0 < done < total else f"took {duration(elapsed)}"
            update(done, f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s  {left}" if done else "")

        return show

    def working(self, name: str) -> Callable[[], None]:
        """A bar for something of unknown length; call the result when it is done."""
        update = self._bar(name, None)
        started = time.monotonic()
        return lambda: update(1, f"took {duration(time.monotonic() - started)}")

    def _bar(self, name: str, total: float | None, done: int = 0) -> Callable[[float, str], None]:
        task = self._progress.add_task(name, total=total, completed=done, detail="")
        last_line = time.monotonic()

        def update(done: float, detail: str) -> None:
            nonlocal last_line
            finished = total is None or done >= total
            self._progress.update(task, total=total or 1, completed=done, detail=detail)
            if not self._draws and (finished or time.monotonic() - last_line >= LINE_SECONDS):
                last_line = time.monotonic()
                share = 1.0 if total is None else done / total
                self._console.print(f"{name:<12} {share:4.0%}  {detail}", highlight=False, soft_wrap=True)

        return update


def about_look(look: Look) -> str:
    """What was seen of a network while it trains, in a line; nothing where nothing was."""
    values, said = look.values, []
    if "held_out_loss" in values:
        said.append(f"held-out loss {values['held_out_loss']:.4f}")
        bits, error = values["held_out_bits_per_dim"], values["held_out_bits_per_dim_error"]
        said.append(f"{bits:.3f} ± {error:.3f} bits/dim")
    if "frechet_distance" in values:
        said.append(f"Fréchet distance {values['frechet_distance']:.4g}")
    if look.picture is not None:
        said.append(str(look.picture))
    return f"step {look.step:,}: {', '.join(said)}" if said else ""
