"""The package's face: what it imports and when, its public names, and the names that version 0.1 had."""

import ast
import importlib
import importlib.metadata
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import fastdiff as fd
from support.networks import one_level

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "triton", "PIL", "safetensors", "matplotlib", "scipy", "sklearn")

COMMAND = "from typer.testing import CliRunner; from fastdiff.cli import app; CliRunner().invoke(app, {})"


@pytest.mark.parametrize(
    "code",
    [
        "import fastdiff; fastdiff.samplers.ddim(fastdiff.Diffusion(fastdiff.NoiseSchedule.cosine(10)), 2)",
        "import fastdiff; dir(fastdiff); hasattr(fastdiff, 'nothing')",
        COMMAND.format(["--help"]),
        COMMAND.format(["train", "--help"]),
    ],
    ids=["tables", "dir", "help", "train help"],
)
def test_torch_is_not_imported_before_it_is_needed(code):
    code += f"; import sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_public_names_resolve_and_are_listed():
    assert len(set(fd.__all__)) == len(fd.__all__)
    for name in fd.__all__:
        assert getattr(fd, name) is not None
    assert dir(fd) == sorted(fd.__all__)
    for missing in ("nothing", "_FormerModule"):
        with pytest.raises(AttributeError, match=f"module 'fastdiff' has no attribute '{missing}'"):
            getattr(fd, missing)


def test_estimates_are_public():
    """docs/samplers.md sends readers of the analytic samplers there."""
    assert callable(fd.estimate.eps_moment)
    assert callable(fd.estimate.eps_error)


def test_type_checkers_read_the_names_of_the_table():
    tree = ast.parse((ROOT / "fastdiff" / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    read = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            # `X as X` hands a name on; a plain import would be private.
            assert alias.asname == alias.name
            read[alias.asname] = node.module
    assert read.keys() == fd._PLACES.keys()
    for name, module in read.items():
        where, _, member = fd._PLACES[name].partition(":")
        expected = f"fastdiff.{where}" if member else f"fastdiff.{where}".rpartition(".")[0]
        assert module == expected, name


@pytest.mark.parametrize("name", sorted(fd._FORMER_MODULES))
def test_former_modules_are_the_modules_themselves(name):
    today = importlib.import_module(f"fastdiff.{fd._FORMER_MODULES[name]}")
    assert importlib.import_module(f"fastdiff.{name}") is today


def test_a_former_module_may_be_the_first_import():
    code = "from fastdiff.unet import UNet; import fastdiff.nets.unet as m; print(UNet is m.UNet)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
    with pytest.raises(ModuleNotFoundError, match=r"fastdiff\.nothing"):
        importlib.import_module("fastdiff.nothing")


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_pickles_of_version_0_1_load(protocol):
    """Their networks and configurations lie under fastdiff.unet and its neighbours."""
    unet = fd.UNet(one_level(attention_resolutions=(4,)))
    today = pickle.dumps(unet, protocol)
    # One for one, since later protocols count the bytes of a name.
    former = {b"fastdiff.nets.unet": b"fastdiff.unet", b"fastdiff.nets.blocks": b"fastdiff.unet_blocks"}
    former |= {b"fastdiff.nets.config": b"fastdiff.unet_config", b"fastdiff.nets.dropout": b"fastdiff.unet_blocks"}
    theirs = _with_modules(today, former)
    assert b"fastdiff.nets" not in theirs
    loaded = pickle.loads(theirs)
    assert type(loaded) is fd.UNet
    assert loaded.config == unet.config
    assert all((value == unet.state_dict()[name]).all() for name, value in loaded.state_dict().items())


def _with_modules(data, names):
    """The pickle with other names of modules; in protocol 4 and up a name stands behind the number of its bytes."""
    for today, former in names.items():
        data = data.replace(b"\x8c" + bytes([len(today)]) + today, b"\x8c" + bytes([len(former)]) + former)
        data = data.replace(b"c" + today + b"\n", b"c" + former + b"\n")
    return data


def test_versions_agree():
    assert importlib.metadata.version("fastdiff-ddpm") == fd.__version__
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    assert dynamic["version"]["attr"] == "fastdiff.version.__version__"
    changelog, citation = ((ROOT / name).read_text() for name in ("CHANGELOG.md", "CITATION.cff"))
    released = yaml.safe_load(citation)
    assert released["version"] == fd.__version__
    # The newest section is this version's, with the day of its release.
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest == f"## {fd.__version__}, {released['date-released']}"
