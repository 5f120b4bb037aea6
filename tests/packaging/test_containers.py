"""What the Dockerfile and the conda recipe say is what there is: files, commands, routes, requirements."""

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path

import typer
import yaml

from fastdiff.cli.app import app
from fastdiff.version import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
RECIPE = ROOT / "docs" / "examples" / "conda" / "recipe.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name):
    return re.findall(rf"^{name} +(.+)$", DOCKERFILE, flags=re.MULTILINE)


def ignored(path):
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return any(
        fnmatch.fnmatch(part, pattern.removeprefix("**/"))
        for pattern in patterns
        for part in (path, *Path(path).parts, path.split("/")[0])
    )


def test_stages_build_on_each_other():
    stages = {}
    for line in instructions("FROM"):
        image, name = line.split(" AS ")
        stages[name] = stages.get(image, image)
    assert list(stages) == ["wheel", "loop", "base", "cuda", "cpu"]
    # What is compiled must find a glibc as new as its own: the wheel's where it is built, the loop's an older one.
    assert stages["cuda"] == stages["cpu"] == stages["wheel"]
    assert set(re.findall(r"from=(\w+)", DOCKERFILE)) <= set(stages)


def test_what_is_copied_is_there_and_what_is_needed_is_not_ignored():
    copied = [words for words in map(shlex.split, instructions("COPY")) if not words[0].startswith("--from")]
    sources = [source for words in copied for source in words[:-1]]
    assert sources
    needed = [*sources, "pyproject.toml", "setup.py", "README.md", "LICENSE", "constraints.txt", "kernels/step.py"]
    needed += ["csrc/module.cpp", "csrc/cuda/nvcc.py", "fastdiff/__init__.py", "fastdiff/serving/page/index.html"]
    assert all((ROOT / path).exists() for path in needed)
    assert not [path for path in needed if path != "." and ignored(path)]
    assert all(ignored(path) for path in (".git", ".venv/bin/python", "build/a.o", "fastdiff/_C.abi3.so", "tests/a.py"))


def test_both_images_run_as_a_user_and_are_looked_after():
    last = DOCKERFILE.split(" AS base\n")[1]
    for stage in ("cuda", "cpu"):
        text = last.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
        assert "USER 1000" in text.splitlines()[-2]
    (health,) = instructions("HEALTHCHECK")
    assert "http://127.0.0.1:8000/health" in health
    assert instructions("EXPOSE") == ["8000"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_command_is_one_of_ours():
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entry) == ["fastdiff"]
    name, model, *options = json.loads(command)
    assert (name, model) == ("serve", "/model")
    known = {option for one in typer.main.get_command(app).commands["serve"].params for option in one.opts}
    assert {option for option in options if option.startswith("--")} <= known


def test_extras_are_extras():
    extras = re.findall(r"whl\)\[([\w,]+)\]", DOCKERFILE)
    assert extras == ["serve,hub", "serve,hub"]
    assert {"serve", "hub"} <= PROJECT["optional-dependencies"].keys()


def test_the_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load(RECIPE.read_text())
    assert recipe["context"]["version"] == __version__
    assert (RECIPE.parent / recipe["source"]["path"] / "setup.py").is_file()
    assert recipe["package"]["name"] == PROJECT["name"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["build"]["python"]["entry_points"] == [
        f"{key} = {value}" for key, value in PROJECT["scripts"].items()
    ]
    # conda-forge calls PyTorch by another name.
    theirs = {one.replace(" ", "").lower() for one in recipe["requirements"]["run"]}
    ours = {one.lower().replace("torch", "pytorch") for one in PROJECT["dependencies"]}
    assert theirs == ours | {f"python{PROJECT['requires-python']}"}


def test_what_pytorch_pins_itself_is_not_pinned_here():
    """Its CUDA builds ask for one Triton, and another in constraints.txt would leave pip without a solution."""
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert "torch" in pinned
    assert not {"triton", "pytorch-triton"} & pinned
