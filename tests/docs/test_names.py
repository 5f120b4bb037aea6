"""The documentation names only what there is: functions and their arguments, commands, choices, files."""

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
import typer

import fastdiff as fd
from fastdiff import samplers
from fastdiff.cli.app import app
from fastdiff.nets.config import PRESETS
from fastdiff.samplers import LEVEL_SPACINGS, SPACINGS
from fastdiff.samplers.registry import SAMPLERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
# Where files that are named without their folder may lie.
FOLDERS = (ROOT, ROOT / "fastdiff", ROOT / "csrc", ROOT / "csrc" / "cpu", ROOT / "docs")
# What a reader's own machine has.
THEIRS = ("out/", "path/", "scripts/")


def inline(text):
    """What stands in backticks, code blocks left out."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def blocks(text, *kinds):
    return [code for kind, code in re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) if kind in kinds]


def resolve(dotted):
    """The object of a dotted name, of modules that are imported as well as of attributes."""
    first, *rest = dotted.split(".")
    found = fd if first in ("fd", "fastdiff") else None
    path = "fastdiff"
    for part in rest:
        path = f"{path}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            if not inspect.ismodule(found):
                raise
            found = importlib.import_module(path)
    return found


def dotted_names(text):
    """fd.X and fastdiff.X, with what follows; not torch.ops.fastdiff, and no file's name."""
    found = re.findall(r"(?<![\w./-])((?:fd|fastdiff)(?:\.[A-Za-z_]\w*)+)(?![\w/-])", text)
    return sorted({name for name in found if not name.endswith((".py", ".yaml", ".json", ".h"))})


@pages
def test_names_of_the_library_resolve(page):
    for name in dotted_names(page.read_text()):
        resolve(name)


@pages
def test_modules_are_named_by_their_place_of_today(page):
    former = {f"fastdiff.{name}" for name in fd._FORMER_MODULES}
    # The change log is about what was.
    if page.name != "CHANGELOG.md":
        # docs/design.md tells of former names, with examples: (`fastdiff.data`, ...).
        text = re.sub(r"\([^()]*, \.\.\.\)", "", page.read_text())
        found = {".".join(name.split(".")[:2]) for name in dotted_names(text)}
        assert not found & former


def called(node):
    """The dotted name of what a call calls, or None."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def calls(page):
    """Calls in the page's Python, of the library's functions and of a pipeline's methods: name, keywords."""
    text = page.read_text()
    code = [*blocks(text, "python"), *(piece for piece in inline(text) if "(" in piece)]
    for piece in code:
        try:
            tree = ast.parse(piece)
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := called(node.func)) is not None:
                yield name, node


@pages
def test_calls_take_the_arguments_that_they_are_given(page):
    for name, node in calls(page):
        if name.startswith("fd."):
            function = resolve(name)
        elif name.startswith("pipe."):
            function = getattr(fd.Pipeline, name.removeprefix("pipe."), None)
            if function is None:
                continue
        else:
            continue
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        given = {keyword.arg for keyword in node.keywords if keyword.arg}
        assert given <= set(parameters), f"{name} of {page.name}"


def idle(command):
    """The command and those below it, doing nothing."""
    command.callback = lambda **arguments: None
    for inner in getattr(command, "commands", {}).values():
        idle(inner)
    return command


def parse(words):
    """Have the command line parse the words. Raises ValueError with what it says of wrong ones."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = idle(typer.main.get_command(app)).main(words, prog_name="fastdiff", standalone_mode=False)
    if code:
        raise ValueError(said.getvalue())


def command_lines(page):
    """Lines of code blocks that run the command, as lists of words."""
    for code in blocks(page.read_text(), "", "bash", "sh", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            if re.match(r"(\S+/)?fastdiff ", line):
                yield shlex.split(line, comments=True)[1:]


def test_command_lines_are_found_and_wrong_ones_are_noticed():
    assert sum(len(list(command_lines(page))) for page in PAGES) > 8
    for words in (["sampel", "x"], ["sample", "x", "--nun", "3"], ["sample"], ["info", "tabel"]):
        with pytest.raises(ValueError, match=r"(No such|Missing)"):
            parse(words)


@pages
def test_command_lines_parse(page):
    for words in command_lines(page):
        parse(words)


@pages
def test_commands_and_options_in_the_text_exist(page):
    """`fastdiff edit`, `fastdiff likelihood --method`: the command is there, and has the options."""
    for piece in inline(page.read_text()):
        words = piece.split()
        if words[0] != "fastdiff" or len(words) < 2 or "|" in words:
            continue
        command = typer.main.get_command(app)
        for word in words[1:]:
            if hasattr(command, "commands") and not word.startswith("-"):
                command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        options |= {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, piece


def accepted(annotation):
    """The values that a Literal allows, in whatever it is packed."""
    if get_origin(annotation) is None:
        return set()
    return {v for v in get_args(annotation) if isinstance(v, str)}.union(*map(accepted, get_args(annotation)))


def choices():
    """For each argument that takes one of some words, those words, of all functions that have it."""
    found = {
        "spacing": {*SPACINGS, *LEVEL_SPACINGS},
        "sampler": set(SAMPLERS),
        "preset": set(PRESETS),
        "method": {"bound", "encode", "estimate", "iwae", "ode", "rate_distortion"},
    }
    functions = [entry.build for entry in SAMPLERS.values()]
    functions += [fd.sample, fd.compile, fd.Diffusion, fd.likelihood.bound_estimate, fd.likelihood.iwae, fd.ops.diffuse]
    for function in functions:
        for name, hint in get_type_hints(function).items():
            if values := accepted(hint):
                found.setdefault(name, set()).update(values)
    return found


@pages
def test_choices_are_accepted(page):
    """name="value", wherever it stands: of a table's options, in a call or in a sentence."""
    known = choices()
    assert {"variance", "prediction", "final", "runner", "precision", "allocation", "implementation"} <= set(known)
    text = page.read_text()
    for name, value in re.findall(r"\b(\w+)=[\"'](\w[\w-]*)[\"']", text):
        assert value in known.get(name, {value}), f"{name}={value!r} in {page.name}"
    for name in ("sampler", "preset", "method"):
        assert set(re.findall(rf"--{name}[ =]([a-z][\w-]*)", text)) <= known[name]


def test_spacings_are_all_named():
    text = (ROOT / "docs" / "samplers.md").read_text()
    (sentence,) = re.findall(r"^`spacing` names .*?\. `timesteps`", text, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'"(\w+)"', sentence)) == {*SPACINGS, *LEVEL_SPACINGS}


def test_scores_are_all_named_with_their_functions():
    text = (ROOT / "docs" / "likelihood.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| `fd\.likelihood\.(\w+)` \|", text, re.MULTILINE))
    # An encoding is no score.
    assert set(table) == choices()["method"] - {"encode"}
    assert all(callable(getattr(fd.likelihood, function)) for function in table.values())


@pages
def test_presets_in_the_text_exist(page):
    assert set(re.findall(r"\b(?:ho|iddpm|adm)-[a-z]*\d+\b", page.read_text())) <= set(PRESETS)


@pages
def test_files_that_are_named_exist(page):
    text = page.read_text()
    named = {piece for piece in inline(text) if re.fullmatch(r"[\w./*-]+/[\w.*-]+\.(py|md|cpp|h|inl|toml|txt)", piece)}
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    named = {name.removeprefix("../") for name in named if not name.startswith(THEIRS)}
    # CONTRIBUTING.md speaks of an op called `name`.
    named = {re.sub(r"(?<![a-z])name(?=[._])", "step", name) for name in named}
    places = (*FOLDERS, page.parent)
    assert not {name for name in named if not any(list(folder.glob(name)) for folder in places)}


def test_samplers_of_the_page_are_functions():
    page = (ROOT / "docs" / "samplers.md").read_text()
    page = page[page.index("<!-- samplers -->") : page.index("<!-- end of samplers -->")]
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == samplers.names(with_statistics=True)
