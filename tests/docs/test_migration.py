"""The migration page: its snippets run, its commands run, and no more than five lines change."""

import difflib
import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff.cli.app import app
from support import edm_files, peer_lucidrains
from support.diffusers_networks import SMALL, diffusers_model
from support.tolerances import PEER_RUN

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
SNIPPETS = dict(re.findall(r"<!-- (\w+: \w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the snippets name."""
    from fastdiff.compat.guided_diffusion.script_util import create_model

    monkeypatch.chdir(tmp_path)
    network = diffusers_model(**{**SMALL, "attention_head_dim": None})
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=100)).save_pretrained("cifar10")
    torch.manual_seed(0)
    model = create_model(32, 32, 1, attention_resolutions="16,8", num_heads=4, use_scale_shift_norm=True)
    torch.save(model.state_dict(), "ema_0.9999_000100.pt")
    return tmp_path


@pytest.mark.parametrize("peer", ["loader", "openai", "lucidrains"])
def test_migration_changes_at_most_five_lines(peer):
    before, after = (SNIPPETS[f"{peer}: {part}"].splitlines() for part in ("before", "after"))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert 1 <= len(changed) <= 5


def run(name):
    names = {}
    torch.manual_seed(0)
    exec(SNIPPETS[name], names)
    return names


def test_migration_lists_the_drop_ins():
    """Of diffusers' schedulers and lucidrains' classes: each that is there, and none that is not."""
    from fastdiff.compat import diffusers as schedulers
    from fastdiff.compat import lucidrains

    listed = PAGE.split("The schedulers:")[1].split("`DPMSolverSDEScheduler` needs torchsde")[0]
    there = {name for name in schedulers.__all__ if name.endswith("Scheduler") and name != "FusedScheduler"}
    assert set(re.findall(r"`(\w+)`", listed)) == there
    section = PAGE.split("## lucidrains")[1].split("\n## ")[0]
    assert {f"`{name}`" for name in lucidrains.__all__} - {*re.findall(r"`\w+`", section)} <= {
        "`ModelPrediction`",
        "`Unet`",
    }
    absent = section.split("by the import error:")[1].split("\n\n")[0]
    for name in re.findall(r"`(\w+)`", absent):
        with pytest.raises((ImportError, AttributeError), match=r"docs/migration\.md"):
            getattr(lucidrains, name)


def test_migration_of_the_loader_runs(here):
    assert run("loader: before")["images"].shape == (2, 8, 8, 3)
    assert run("loader: after")["images"].shape == (2, 3, 8, 8)
    pipe = run("loader: hints")["pipe"]
    assert pipe.unet.config.image_size == 32
    assert pipe.unet.config.num_heads == 4


def test_migration_of_an_edm_file_runs(here):
    edm_files.write(here / "edm-cifar10-32x32-cond-vp.pkl", "ddpmpp with labels")
    assert run("loader: edm")["images"].shape == (4, 3, 8, 8)


def test_migration_of_openai_runs(here):
    assert run("openai: after")["images"].shape == (2, 3, 32, 32)
    # Theirs is not on the package index; the one change is the name of the package.
    assert (
        SNIPPETS["openai: before"]
        .replace("guided_diffusion ", "fastdiff.compat.guided_diffusion ")
        .replace("guided_diffusion.script", "fastdiff.compat.guided_diffusion.script")
        == SNIPPETS["openai: after"]
    )


def test_migration_of_lucidrains_runs_and_gives_the_same(here):
    ours = run("lucidrains: after")
    assert ours["images"].shape == (2, 3, 8, 8)
    peer_lucidrains.load()
    theirs = run("lucidrains: before")
    theirs["diffusion"].load_state_dict(ours["diffusion"].state_dict())
    images = []
    for names in (ours, theirs):
        torch.manual_seed(1)
        images.append(names["diffusion"].sample(batch_size=2))
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=2 * PEER_RUN)


@pytest.mark.filterwarnings("ignore:.*their code would compute something else")
def test_migration_commands_run(here):
    lines = [line for line in PAGE.splitlines() if line.startswith("fastdiff convert")]
    assert len(lines) == 3
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    before, after = (fd.Pipeline.from_pretrained(name) for name in ("cifar10", "cifar10-again"))
    state = after.unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.unet.state_dict().items())
