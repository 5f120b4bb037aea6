"""Options that the commands share, and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from fastdiff.process.checks import shown

if TYPE_CHECKING:
    from fastdiff.pipeline import Pipeline

__all__ = [
    "DeviceOption",
    "ModelArgument",
    "ThreadsOption",
    "WeightsOption",
    "key_values",
    "load_pipeline",
    "read_yaml",
]


def _set_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


DeviceOption = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.", show_default=True)
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, callback=_set_threads, help="Of the CPU; as many as there are cores, if left out."),
]
ModelArgument = Annotated[Path, typer.Argument(help="A model folder, or the folder of a training run.")]
WeightsOption = Annotated[
    str | None, typer.Option(help="ema (averaged) or raw; what the model was saved with, if left out.")
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


def key_values(pairs: list[str]) -> dict[str, Any]:
    """`name=value` texts as options. Numbers, true, false, none and [lists] are read as such, the rest as text.

    Raises:
        ValueError: a text without "=" or without a name.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"an option is name=value, for example eta=0.5, got {shown(pair)}")
        options[name.strip().replace("-", "_")] = read_yaml(text, f"option {name.strip()}")
    return options


def load_pipeline(model: Path, device: str, weights: str | None = None) -> Pipeline:
    """The model that a command was given. Raises ValueError for a path or a device that does not fit."""
    from fastdiff.cli.environment import resolve_device
    from fastdiff.pipeline import Pipeline

    kind: Any = weights
    return Pipeline.from_pretrained(model, device=resolve_device(device), weights=kind)
