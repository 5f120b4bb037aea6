"""Models of the Hub: out of reach, and as the Hub gives them."""

from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler

import fastdiff as fd
from fastdiff.convert.hub import is_hub_id
from support.diffusers_networks import SMALL, diffusers_model


def test_from_pretrained_of_a_hub_id_says_when_the_hub_is_out_of_reach(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        RuntimeError, match=r"'nobody/nothing' is not on this disk.*network is unreachable.*local folder"
    ):
        fd.Pipeline.from_pretrained("nobody/nothing")


def test_from_pretrained_of_a_hub_id_loads_what_the_hub_gives(monkeypatch, tmp_path):
    import huggingface_hub

    DDPMPipeline(diffusers_model(**SMALL), DDPMScheduler()).save_pretrained(tmp_path)
    asked = []

    def download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pipe = fd.Pipeline.from_pretrained("nobody/nothing")
    assert pipe.unet.config.channels == 8
    # Safetensors are there, so no pickle was asked for.
    assert asked == [("nobody/nothing", ["*.json", "*.safetensors"])]


@pytest.mark.parametrize(
    "text",
    [
        "models/m.pt",
        "weights/a.safetensors",
        "someone/model.ckpt",
        "runs/digits",
        "out/demo",
        "checkpoints/step_00000100",
        "anything/step_00000100",
        "/a/b",
        "a/b/c",
        "digitz/model",
        "here/nothing",
        "a",
        "",
    ],
)
def test_what_looks_like_a_local_path_is_not_asked_of_the_hub(text, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    for folder in ("digits", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    for path in (text, Path(text)):
        assert not is_hub_id(path)
    if text:
        with pytest.raises(ValueError, match="does not exist"):
            fd.Pipeline.from_pretrained(text)


@pytest.mark.parametrize("text", ["google/ddpm-cifar10-32", "hf://google/ddpm", "hf://runs/digits", "1aurent/ddpm.v2"])
def test_hub_ids_are_known_by_their_form_or_their_prefix(text, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    assert is_hub_id(text)
    assert is_hub_id(Path(text))
    asked = []

    def download(repo_id, *, allow_patterns):
        asked.append(repo_id)
        raise OSError("unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(RuntimeError, match="unreachable"):
        fd.Pipeline.from_pretrained(text)
    assert asked == [text.removeprefix("hf://")]
