"""Options that the commands share, and how they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from fastdiff.process.arguments import spelling
from fastdiff.process.checks import shown

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline

__all__ = [
    "Command",
    "DeviceOption",
    "MemoryOption",
    "ModelArgument",
    "PrecisionOption",
    "SamplerOptions",
    "StepsOption",
    "TableOption",
    "ThreadsOption",
    "UsageFault",
    "WeightsOption",
    "blaming",
    "key_values",
    "load_pipeline",
    "read_yaml",
]


_TYPED = "fastdiff.typed"


class UsageFault(ValueError):
    """What a command was given is wrong: the message names an option of it."""


class Command(TyperCommand):
    """A command whose messages name its options as they were typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and remember which options were typed."""
        ctx.meta[_TYPED] = {argument.partition("=")[0] for argument in args}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            UsageFault: for a ValueError whose message names one of the command's options.
        """
        names: dict[str, list[str]] = {param.name: param.opts for param in self.params if param.name in ctx.params}
        typed = {name: [option for option in names[name] if _is_typed(option, ctx.meta[_TYPED])] for name in names}
        options = {name: (typed[name] or spelt)[0] for name, spelt in names.items() if spelt[0].startswith("-")}
        try:
            with spelling(options, [name for name in options if typed[name]]):
                return super().invoke(ctx)
        except ValueError as error:
            words = {word.strip(":;,.()'") for word in str(error).split()}
            if words & {option for spelt in names.values() for option in spelt if option.startswith("-")}:
                raise UsageFault(str(error)) from error
            raise


def _is_typed(option: str, words: set[str]) -> bool:
    # The value of a short option may follow at once: -n8.
    return option in words or (option[1:2] != "-" and any(word.startswith(option) for word in words))


@contextmanager
def blaming(option: str, pairs: Sequence[str] | None) -> Iterator[None]:
    """Put `--option name=value` before the message of an error that names one of such pairs."""
    try:
        yield
    except ValueError as error:
        for pair in pairs or []:
            name = pair.partition("=")[0].strip()
            if name.rpartition(".")[2].replace("-", "_") in re.findall(r"\w+", str(error)) and option not in str(error):
                raise ValueError(f"{option} {shown(pair)[1:-1]}: {error}") from error
        raise


def _set_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        from fastdiff.engine.threads import stay_within_quota

        stay_within_quota()
    return threads


DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.", show_default=True)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, callback=_set_threads, help="Of the CPU; all of them, or what a container grants, if left out."
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(help="Network evaluations; if left out, all timesteps for ddpm, at most 50 for others."),
]
SamplerOptions = Annotated[
    list[str] | None, typer.Option("--option", help="Of the sampler, as name=value: eta=0.5. May be repeated.")
]
TableOption = Annotated[
    Path | None, typer.Option(help="A table of coefficients (.json, `CoefficientTable.to_json`) as the sampler.")
]
ModelArgument = Annotated[Path, typer.Argument(help="A model folder, or the folder of a training run.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="Of the engine on a CPU: fast, strict or bfloat16; fast, if left out."),
]
MemoryOption = Annotated[
    str,
    typer.Option(help="Of the engine on a CPU: normal, or low for packed weights that take about half, and slower."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="ema (averaged), raw, or an average of several, such as ema:0.999 or power:0.05; what the model was saved "
        "with, if left out."
    ),
]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also reads 1e-4 as a number and none as no value, and knows no aliases.

    An alias is no more than another name of a value, and a few of them make gigabytes.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases, else as ever."""
        if self.check_event(yaml.AliasEvent):
            event: yaml.AliasEvent = self.peek_event()  # type: ignore[no-untyped-call]
            line = 0 if event.start_mark is None else event.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: aliases (*{event.anchor}) are not read")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:none|None)$"), list("nN"))


def read_yaml(text: str, what: str) -> Any:
    """The value of a YAML text: plain data, never code.

    Args:
        text: What to read.
        what: Where it is from, for the error.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError(f"{what}: nested too deeply") from error
    # A date or a number that YAML's forms allow and Python does not is a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{what}: {' '.join(str(error).split())}") from error


def key_values(pairs: list[str], option: str = "--option") -> dict[str, Any]:
    """`name=value` texts, given to an option of that name, as options.

    Numbers, true, false, none and [lists] are read as such, the rest as text.

    Raises:
        ValueError: a text without "=" or without a name.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"{option} takes name=value, for example eta=0.5, got {shown(pair)}")
        options[name.strip().replace("-", "_")] = read_yaml(text, f"{option} {name.strip()}")
    return options


def load_pipeline(
    model: Path, device: str, weights: str | None = None, precision: str | None = None, memory: str = "normal"
) -> Pipeline:
    """The model that a command was given. Raises ValueError for a path or an option that does not fit."""
    from fastdiff.cli.environment import resolve_device
    from fastdiff.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(model, device=resolve_device(device), weights=weights)
    pipe.precision = precision  # type: ignore[assignment]
    pipe.memory = memory  # type: ignore[assignment]
    return pipe
