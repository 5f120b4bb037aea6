"""`Pipeline` of networks in PyTorch's wrappers, or with OpenAI's names: what it writes, it reads."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DataParallel

import fastdiff as fd
from fastdiff.compat.guided_diffusion.unet import SuperResModel, UNetModel
from fastdiff.convert.save import save_as
from fastdiff.files import checkpoint
from fastdiff.sampling.guidance import AutoGuidance
from support.networks import shaken, small_unet

PROCESS = fd.Diffusion(fd.NoiseSchedule.cosine(20))


def compiled(network):
    return torch.compile(network, backend="eager")


def openai(kind=UNetModel):
    torch.manual_seed(0)
    return shaken(kind(8, 1, 32, 1, 1, (2,), channel_mult=(1, 2)), 0.05).eval()


NETWORKS = {
    "compiled": lambda: compiled(small_unet()),
    "parallel": lambda: DataParallel(small_unet()),
    "both": lambda: compiled(DataParallel(small_unet())),
    "OpenAI's names": openai,
    "OpenAI's names, compiled": lambda: compiled(openai()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pipeline_of_a_wrapped_network_saves_what_it_loads(name, tmp_path):
    pipe = fd.Pipeline(NETWORKS[name](), PROCESS)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 4])
    again = fd.Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(again.unet(x, t), pipe.unet(x, t))
    # A wrapper that is put on later stays on, and is left out of the files.
    pipe.unet = compiled(pipe.unet)
    pipe.save_pretrained(tmp_path / "later")
    assert (tmp_path / "later" / "model.safetensors").read_bytes() == (
        tmp_path / "model" / "model.safetensors"
    ).read_bytes()
    if "OpenAI" in name:
        save_as(pipe, tmp_path / "net.pt", "openai")
        read = fd.Pipeline.from_pretrained(tmp_path / "net.pt")
        with torch.no_grad():
            assert torch.equal(read.unet(x, t), again.unet(x, t))


def test_pipeline_refuses_what_it_could_not_save():
    with pytest.raises(ValueError, match="SuperResModel computes more than its configuration"):
        fd.Pipeline(openai(SuperResModel), PROCESS)
    for given in (fd.compile(small_unet()), AutoGuidance(small_unet(), small_unet(), 2.0), nn.Linear(1, 1), small_unet):
        with pytest.raises(TypeError, match=f"got {type(given).__name__}: give the network itself, and guide"):
            fd.Pipeline(given, PROCESS)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


def forget(path, key):
    """Others who write a weights file know of no checksum."""
    settings = json.loads(path.read_text())
    del settings[key]
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_from_pretrained_takes_wrappers_prefixes_off_its_own_files(prefix, tmp_path):
    pipe = fd.Pipeline(small_unet(), PROCESS)
    folder = pipe.save_pretrained(tmp_path / "model")
    file = folder / "model.safetensors"
    forget(folder / "config.json", "checksums")
    save_file({prefix + name: value for name, value in load_file(file).items()}, file, {"format": "pt"})
    again = fd.Pipeline.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), pipe.unet.parameters(), strict=True))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_from_pretrained_takes_wrappers_prefixes_off_openais_and_diffusers_files(prefix, tmp_path):
    pipe = fd.Pipeline(openai(), PROCESS)
    save_as(pipe, tmp_path / "net.pt", "openai")
    named = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({prefix + name: value for name, value in named.items()}, tmp_path / "net.pt")
    forget(tmp_path / "net.pt.json", "checksum")
    save_as(pipe, tmp_path / "peer", "diffusers")
    file = tmp_path / "peer" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({prefix + name: value for name, value in load_file(file).items()}, file, {"format": "pt"})
    for path in ("net.pt", "peer"):
        again = fd.Pipeline.from_pretrained(tmp_path / path)
        assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), pipe.unet.parameters(), strict=True))


def test_what_was_written_is_read_back_before_it_gets_its_name(tmp_path, monkeypatch):
    write = checkpoint.save_file

    def without_one(tensors, path, metadata):
        write(dict(list(tensors.items())[1:]), path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", without_one)
    with pytest.raises(ValueError, match=r"model.safetensors as written .* is missing"):
        fd.Pipeline(small_unet(), PROCESS).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == "[]"
