"""The command `fastdiff`: demo, train, sample, generate, gather, evaluate, compare, score, likelihood, edit,
convert, export, serve, ema, info.

Nothing heavy is imported before a command needs it, so that `fastdiff --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from fastdiff.cli.compare import compare
from fastdiff.cli.convert import convert
from fastdiff.cli.demo.command import demo
from fastdiff.cli.edit import edit_app
from fastdiff.cli.ema import ema
from fastdiff.cli.evaluate import evaluate
from fastdiff.cli.export import export
from fastdiff.cli.generate import gather, generate
from fastdiff.cli.info import info_app
from fastdiff.cli.likelihood import likelihood
from fastdiff.cli.options import Command, UsageFault
from fastdiff.cli.push import push
from fastdiff.cli.sample import sample
from fastdiff.cli.score import score
from fastdiff.cli.serve import serve
from fastdiff.cli.train import train
from fastdiff.version import __version__

__all__ = ["app", "main"]

LONGEST = 4000
"""Characters of a message."""

SIGNALLED = 128
"""Added to the signal's number, the exit code after a signal, as shells use it: 130 after Ctrl-C, 143 after SIGTERM."""


USAGE = 2
"""The exit code where a command must be given in another way: its message names an option."""


class Commands(TyperGroup):
    """Turns what goes wrong into one line: `error: ...`.

    The exit code is 2 where the message names an option, 1 where something else failed, and 130 after Ctrl-C.
    """

    # Typer brings its own copy of click's classes in some versions, and uses click's in others.
    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _plain_warnings():
            try:
                return super().invoke(ctx)
            except (ValueError, RuntimeError, OSError, ImportError) as error:
                # Typer's own control flow is made of RuntimeErrors.
                if ctx.params.get("debug") or isinstance(error, typer.Exit | typer.Abort):
                    raise
                typer.echo(f"{_whose()}error: {_message(error)}", err=True)
                raise typer.Exit(USAGE if isinstance(error, UsageFault) else 1) from error
            except Exception as error:
                # Of click: an option that is not known, or a value of another type.
                said = getattr(error, "format_message", None)
                if said is None or ctx.params.get("debug") or type(error).__name__ == "NoArgsIsHelpError":
                    raise
                within = getattr(error, "ctx", None) or ctx
                typer.echo(f"error: {' '.join(said().split())} (see {within.command_path} --help)", err=True)
                raise typer.Exit(USAGE) from error
            except KeyboardInterrupt as interrupt:
                said = f"{interrupt}; the same command goes on from there" if str(interrupt) else "stopped"
                typer.echo(f"\n{_whose()}{said}", err=True)
                raise typer.Exit(SIGNALLED + getattr(interrupt, "signal_number", signal.SIGINT)) from interrupt


app = typer.Typer(
    cls=Commands,
    name="fastdiff",
    help="Train, sample and score denoising diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the command line."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        # PyTorch's threads would hold a processor for milliseconds while they wait for each other. libgomp reads this
        # when it is loaded, which no command has done yet.
        os.environ["GOMP_SPINCOUNT"] = "10000"
    app(prog_name="fastdiff")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdiff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Read the options that stand before the command; `Commands` looks at "debug"."""


for command in (
    demo,
    train,
    sample,
    generate,
    gather,
    evaluate,
    compare,
    score,
    likelihood,
    convert,
    export,
    push,
    serve,
    ema,
):
    app.command(cls=Command)(command)
app.add_typer(edit_app, name="edit")
app.add_typer(info_app, name="info")


def _whose() -> str:
    """Of several processes that write to one terminal, which one."""
    return f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def _message(error: BaseException) -> str:
    """What an exception says, in the words of the command line, with the file's name where the system reports one."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings as one line each, without the place in the code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
