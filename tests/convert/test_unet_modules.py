"""The list of a U-Net's parts: every parameter of the network belongs to one, in the order in which they run."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.convert.unet_modules import network_modules
from fastdiff.nets.config import PRESETS
from support.networks import small_preset

CONFIGS = {name: small_preset(name) for name in PRESETS}
CONFIGS["pooled"] = small_preset("ho-cifar10", conv_resample=False)


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_cover_every_parameter_once(name):
    with torch.device("meta"):
        unet = fd.UNet(CONFIGS[name])
    modules = list(network_modules(CONFIGS[name]))
    names = [module.name for module in modules]
    assert len(set(names)) == len(names)
    owners = {
        parameter: [module for module in names if parameter.startswith(f"{module}.")]
        for parameter, _ in unet.named_parameters()
    }
    assert all(len(found) == 1 for found in owners.values()), owners
    assert {found[0] for found in owners.values()} == set(names)


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_are_the_modules_that_they_say(name):
    with torch.device("meta"):
        unet = fd.UNet(CONFIGS[name])
    sizes = CONFIGS[name].level_sizes
    for entry in network_modules(CONFIGS[name]):
        module = unet.get_submodule(entry.name)
        kinds = {"linear": nn.Linear, "embedding": nn.Embedding, "conv": nn.Conv2d, "resample_conv": nn.Conv2d}
        if entry.kind in kinds:
            assert isinstance(module, kinds[entry.kind])
        else:
            expected = {"norm": "GroupNormAct", "res": "ResBlock", "attention": "AttentionBlock"}[entry.kind]
            assert type(module).__name__ == expected
        assert 0 <= entry.level < len(sizes)
        if entry.kind == "res":
            assert entry.has_skip == any(part.startswith("skip") for part, _ in module.named_parameters())


def test_modules_stand_in_the_order_of_the_names_in_openais_networks():
    """time_embed, input_blocks, middle_block, output_blocks, out: each counting up."""
    names = [module.name for module in network_modules(PRESETS["adm-imagenet64"])]
    groups = [name.split(".")[0] for name in names]
    order = ["time_embed", "label_emb", "input_blocks", "middle_block", "output_blocks", "norm_out", "conv_out"]
    assert list(dict.fromkeys(groups)) == order
    for group in ("input_blocks", "output_blocks"):
        numbers = [int(name.split(".")[1]) for name in names if name.startswith(group)]
        assert numbers == sorted(numbers)
    down = [module.level for module in network_modules(PRESETS["adm-imagenet64"]) if module.part == "down"]
    assert down == sorted(down)
    up = [module.level for module in network_modules(PRESETS["adm-imagenet64"]) if module.part == "up"]
    assert up == sorted(up, reverse=True)
