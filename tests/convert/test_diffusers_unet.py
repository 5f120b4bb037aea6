"""Networks and schedulers of diffusers against fastdiff's, live: one input, two implementations."""

import pytest
import torch
from diffusers import UNet2DModel

import fastdiff as fd
from fastdiff import convert
from fastdiff.nets.config import PRESETS
from support.diffusers_networks import CASES, CIFAR10, SMALL, diffusers_model
from support.tolerances import PEER_NETWORK


def inputs(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, config.in_channels, config.image_size, config.image_size, generator=generator)
    y = None if config.num_classes is None else torch.tensor([0, config.num_classes - 1])
    return x, torch.tensor([3, 977]), y


@torch.no_grad()
def assert_same_output(unet, model):
    x, t, y = inputs(unet.config)
    expected = model(x, t, class_labels=y).sample
    error = (unet(x, t, y) - expected).abs().max() / expected.abs().max()
    assert error < PEER_NETWORK, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_to_unet_gives_the_outputs_of_the_diffusers_model(name):
    model = diffusers_model(**CASES[name])
    assert_same_output(convert.to_unet(model), model)


@pytest.mark.parametrize("name", CASES)
def test_from_unet_inverts_to_unet(name):
    unet = convert.to_unet(diffusers_model(**CASES[name]))
    model = convert.from_unet(unet)
    assert_same_output(unet, model)
    again = convert.to_unet(model)
    # One head of C channels and "C channels per head" are one network where there is one width.
    assert again.config.heads(16) == unet.config.heads(16)
    for key, value in unet.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_to_unet_reads_the_old_names_of_attention():
    model = diffusers_model(**CASES["small"])
    unet = convert.to_unet(model)
    old = convert.to_layout(unet.state_dict(), unet.config, "diffusers_old")
    assert any(name.endswith("attentions.0.query.weight") for name in old)
    assert not any(".to_q." in name for name in old)
    renamed = convert.from_layout(old, unet.config, "diffusers_old")
    for key, value in unet.state_dict().items():
        assert torch.equal(renamed[key], value), key


def test_to_unet_reads_the_cifar10_network_of_ho():
    config = convert.unet_config_from_diffusers(
        CIFAR10 | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32, "dropout": 0.1}
    )
    assert config == PRESETS["ho-cifar10"]


def test_to_unet_keeps_the_type_the_mode_and_the_model():
    model = diffusers_model(**SMALL).to(torch.bfloat16).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unet = convert.to_unet(model)
    assert unet.training
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_to_unet_draws_no_random_numbers():
    model = diffusers_model(**SMALL)
    state = torch.get_rng_state()
    convert.to_unet(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("iddpm-imagenet64", "adm-imagenet512")])
def test_layout_names_are_those_of_diffusers_for_each_preset(name):
    config = PRESETS[name]
    if name in ("adm-imagenet128",):
        with pytest.raises(ValueError, match="4 heads at widths"):
            convert.unet_config_to_diffusers(config)
        return
    with torch.device("meta"):
        model = UNet2DModel.from_config(convert.unet_config_to_diffusers(config))
        unet = fd.UNet(config)
    theirs = {key: value.shape for key, value in model.state_dict().items()}
    ours = convert.to_layout(unet.state_dict(), config, "diffusers")
    assert {key: value.shape for key, value in ours.items()} == theirs
    assert set(convert.layout_names(config, "diffusers")) == set(theirs)
