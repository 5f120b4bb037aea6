"""The pages of the reference: which public names stand on which, each written out of its docstring."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import click

import fastdiff as fd

# Page: title, first paragraph, what stands there. A module's public names follow it, all of them.
PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "processes": (
        "Reference: processes and tables",
        "What a network was trained on, and the table that a sampler is. NumPy alone.",
        ("NoiseSchedule", "Diffusion", "CoefficientTable", "noise"),
    ),
    "samplers": (
        "Reference: samplers",
        "Each is a function from a process to a table. [Which one, and how many steps](../which-sampler.md).",
        ("samplers", "estimate"),
    ),
    "sampling": (
        "Reference: sampling and pipelines",
        "From noise to images: the loop over a table, guidance, and a network with its process in one.",
        ("sample", "Pipeline", "guidance", "DynamicThreshold", "Views", "langevin"),
    ),
    "networks": (
        "Reference: networks",
        "The U-Net, the engine that runs it, and other people's networks.",
        ("UNet", "UNetConfig", "compile", "accelerate", "restore", "load_model", "save_model", "convert"),
    ),
    "training": ("Reference: training", "The loop and its settings.", ("Trainer", "TrainConfig", "Ema")),
    "scores": ("Reference: likelihood", "Bits per dimension, with every term and its error.", ("likelihood",)),
    "editing": ("Reference: editing", "Encode, decode, vary, interpolate, inpaint.", ("editing",)),
    "evaluation": (
        "Reference: evaluation and figures",
        "Distances between sets of images, numbers of one set, and pictures of both.",
        ("evaluation", "metrics", "figures"),
    ),
    "data": ("Reference: data", "What a training reads its images from.", ("data",)),
    "serving": (
        "Reference: serving",
        "The engine that puts requests together, its server's client, and Ray Serve.",
        ("serving",),
    ),
    "ops": (
        "Reference: ops",
        "The fused ops: one schema each, with an implementation for the CPU and one in Triton.",
        ("ops",),
    ),
}


def members(module: ModuleType) -> list[str]:
    """The public functions and classes of a module, in the order in which it has them."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    kept = [name for name in names if not name.startswith("_")]
    return [name for name in kept if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))]


def place_of(value: Any) -> str | None:
    """Where a function or class is written, as mkdocstrings looks it up; None for what is written elsewhere."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}.{name}" if module and name and module.startswith("fastdiff.") else None


def entry(name: str, value: Any) -> str:
    place = place_of(value)
    if place is None:
        return ""
    return f"::: {place}\n    options:\n      heading: {name}\n      toc_label: {name}\n\n"


def page(title: str, first: str, names: tuple[str, ...]) -> str:
    text = f"# {title}\n\n{first}\n\n"
    for name in names:
        value = getattr(fd, name)
        if inspect.ismodule(value):
            # Names that only a module shows, without their own docstrings, would be empty headings.
            text += "".join(entry(f"fd.{name}.{member}", getattr(value, member)) for member in members(value))
        else:
            text += entry(f"fd.{name}", value)
    return text


def index() -> str:
    rows = "\n".join(
        f"- [{title.removeprefix('Reference: ').capitalize()}]({name}.md): {first}"
        for name, (title, first, _) in PAGES.items()
    )
    return (
        "# Reference\n\nEvery public name, out of its docstring. `import fastdiff as fd` is quick: PyTorch is imported "
        f"later, with the first name that needs it.\n\n{rows}\n"
        "- [Commands](commands.md): the command line, with every option.\n"
    )


def command_pages(command: click.Command, words: list[str]) -> str:
    """A command and those below it: what it does, how it is called, its options."""
    context = click.Context(command, info_name=words[-1])
    text = ""
    if len(words) > 1 and not hasattr(command, "commands"):
        usage = " ".join([*words, *(piece for piece in command.collect_usage_pieces(context))])
        text += f"## {' '.join(words)}\n\n{inspect.cleandoc(command.help or '')}\n\n```text\n{usage}\n```\n\n"
        rows = [record for param in command.params if (record := param.get_help_record(context))]
        if rows:
            text += "| option | |\n|---|---|\n"
            text += "".join(f"| `{line(option)}` | {escaped(line(told))} |\n" for option, told in rows) + "\n"
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        text += command_pages(inner, [*words, name])
    return text


def line(text: str) -> str:
    """In one line, as a cell of a table takes it."""
    return " ".join(text.split()).replace("|", "\\|")


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "\\[")


def commands() -> str:
    typer_main = importlib.import_module("typer.main")
    app = importlib.import_module("fastdiff.cli.app").app
    return "# Reference: command line\n\nAs `fastdiff COMMAND --help` says it.\n\n" + command_pages(
        typer_main.get_command(app), ["fastdiff"]
    )


def pages() -> dict[str, str]:
    """Path on the site to text, of all pages of the reference."""
    found = {f"reference/{name}.md": page(*parts) for name, parts in PAGES.items()}
    return found | {"reference/index.md": index(), "reference/commands.md": commands()}
