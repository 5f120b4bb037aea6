"""Configurations read off the shapes of a state dict."""

import pytest
import torch

import fastdiff as fd
from fastdiff import convert
from fastdiff.convert.infer import infer_ddim, infer_openai, recognise
from fastdiff.nets.config import PRESETS, UNetConfig


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {}) for name in PRESETS),
        ("iddpm-cifar10", {"conv_resample": False}),
        ("iddpm-cifar10", {"channel_mult": (2,), "attention_resolutions": ()}),
    ],
    ids=str,
)
def test_infer_openai_reads_every_preset_off_its_shapes(name, change):
    config = UNetConfig.preset(name, **change)
    with torch.device("meta"):
        state = fd.UNet(config).state_dict()
    theirs = convert.to_layout(state, config, "openai")
    assert recognise(theirs) == "openai"
    inferred = infer_openai(theirs)
    for field in ("in_channels", "out_channels", "channels", "channel_mult", "num_res_blocks", "num_classes"):
        assert inferred.fields[field] == getattr(config, field), field
    assert inferred.fields["scale_shift_norm"] == config.scale_shift_norm
    assert inferred.fields["resblock_updown"] == config.resblock_updown
    if not config.resblock_updown:
        assert inferred.fields["conv_resample"] == config.conv_resample
    assert [config.image_size >> level for level in inferred.attention_levels] == sorted(
        config.attention_resolutions, reverse=True
    )
    assert inferred.learned_variance == (config.out_channels == 2 * config.in_channels)


@pytest.mark.parametrize("name", ["ho-cifar10", "ho-256"])
def test_infer_ddim_reads_hos_networks_off_their_shapes(name):
    config = PRESETS[name]
    with torch.device("meta"):
        state = fd.UNet(config).state_dict()
    theirs = convert.to_layout(state, config, "ddim")
    assert recognise(theirs) == "ddim"
    inferred = infer_ddim(theirs)
    fields = {**inferred.fields, "image_size": config.image_size, "dropout": config.dropout}
    fields["attention_resolutions"] = [config.image_size >> level for level in inferred.attention_levels]
    assert UNetConfig.from_dict(fields) == config
