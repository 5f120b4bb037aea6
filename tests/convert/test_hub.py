"""Models of the Hub: out of reach, and as the Hub gives them."""

import pytest
from diffusers import DDPMPipeline, DDPMScheduler

import fastdiff as fd
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
