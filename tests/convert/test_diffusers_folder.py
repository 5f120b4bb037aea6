"""Folders as diffusers writes them: variants, shards, and what is said where a choice is open."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

import fastdiff as fd
from fastdiff.convert.diffusers_folder import read_weights
from support.diffusers_networks import SMALL, diffusers_model

STEM = "diffusion_pytorch_model"


def written(folder, **options):
    """A pipeline's folder that diffusers wrote, and its network."""
    model = diffusers_model(**SMALL)
    pipeline = DDPMPipeline(model, DDPMScheduler(num_train_timesteps=20))
    pipeline.save_pretrained(folder, **options)
    return model


@torch.no_grad()
def output(network):
    x = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)
    out = network(x, torch.tensor([3, 17]))
    return out if isinstance(out, torch.Tensor) else out.sample


@pytest.mark.parametrize("variant", [None, "fp32", "bf16", "fp16", "ema", "non_ema", "my_own"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["10GB", "50KB"])
def test_any_variant_is_read_whole_and_in_shards(tmp_path, variant, safe, shard):
    model = diffusers_model(**SMALL)
    DDPMScheduler(num_train_timesteps=20).save_pretrained(tmp_path / "m" / "scheduler")
    model.save_pretrained(tmp_path / "m" / "unet", variant=variant, safe_serialization=safe, max_shard_size=shard)
    is_sharded = bool(list((tmp_path / "m" / "unet").glob("*.index*.json")))
    assert is_sharded is (shard == "50KB")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "m" / "unet")
    torch.testing.assert_close(output(pipe.unet), output(model))
    assert pipe.metadata["weights"] == {"ema": "ema", "non_ema": "raw"}.get(variant)


def test_the_weights_asked_for_are_taken_where_a_folder_has_both(tmp_path):
    written(tmp_path / "m")
    unet = tmp_path / "m" / "unet"
    state = load_file(unet / f"{STEM}.safetensors")
    (unet / f"{STEM}.safetensors").unlink()
    for factor, name in ((1.0, "ema"), (2.0, "non_ema")):
        save_file({key: value * factor for key, value in state.items()}, unet / f"{STEM}.{name}.safetensors")
    with pytest.raises(ValueError, match=r"give weights='ema' or weights='raw'"):
        fd.Pipeline.from_pretrained(tmp_path / "m")
    for factor, weights in ((1.0, "ema"), (2.0, "raw")):
        pipe = fd.Pipeline.from_pretrained(tmp_path / "m", weights=weights)
        torch.testing.assert_close(pipe.unet.state_dict()["conv_out.weight"], factor * state["conv_out.weight"])
        assert pipe.metadata["weights"] == weights
    (unet / f"{STEM}.ema.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 'raw' weights only by its name, got weights='ema'"):
        fd.Pipeline.from_pretrained(tmp_path / "m", weights="ema")


def test_half_precision_is_the_last_choice(tmp_path):
    written(tmp_path / "m")
    unet = tmp_path / "m" / "unet"
    state = load_file(unet / f"{STEM}.safetensors")
    save_file({key: (0 * value).half() for key, value in state.items()}, unet / f"{STEM}.fp16.safetensors")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "m")
    assert float(pipe.unet.state_dict()["conv_out.weight"].abs().sum()) > 0


def test_a_folder_without_weights_lists_what_is_there(tmp_path):
    written(tmp_path / "m")
    unet = tmp_path / "m" / "unet"
    (unet / f"{STEM}.safetensors").rename(unet / "other.safetensors")
    with pytest.raises(ValueError, match=r"holds no weights that could be chosen: .*got none"):
        fd.Pipeline.from_pretrained(tmp_path / "m")


def test_read_weights_refuses_an_index_that_is_wrong(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path.parent / "outside.safetensors")
    index = tmp_path / f"{STEM}.safetensors.index.json"
    for weights, message in (
        ({"b": "../outside.safetensors"}, "shards lie beside the index"),
        ({"a": "one.safetensors", "c": "one.safetensors"}, "index and shards differ in 1 tensors, such as c"),
        ({"a": "missing.safetensors"}, "cannot read|No such file"),
        ({}, "weight_map must map"),
        ([1], "weight_map must map"),
        ({"a": 3}, "weight_map must map"),
    ):
        index.write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(ValueError, match=message):
            read_weights(index)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert list(read_weights(index)) == ["a"]
