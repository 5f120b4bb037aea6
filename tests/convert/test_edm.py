"""EDM's networks as configurations of the `UNet`, against a re-derivation in plain PyTorch, in float64."""

import dataclasses

import pytest
import torch

import fastdiff as fd
from fastdiff.convert.edm import from_edm, unet_config_from_edm
from fastdiff.nets.unet import num_parameters
from support.edm_networks import SETTINGS, calls, config_of, own, plain
from support.tolerances import FLOAT32_DEEP, FLOAT64_NETWORK


@pytest.mark.parametrize("case", SETTINGS)
def test_unet_is_edms_network(case):
    model = plain(case)
    unet = own(case, model)
    x, t, y, one_hot = calls(case)
    augment = None
    if unet.config.augment_channels:
        augment = torch.randn(len(x), 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        expected = model(x, t, one_hot, augment)
        actual = unet(x, t, y) if augment is None else unet(x, t, y, augment)
        plain_labels = unet(x, t, y)
        assert (model(x, t, one_hot) - plain_labels).abs().max() <= FLOAT64_NETWORK * expected.abs().max()
    assert (actual - expected).abs().max() <= FLOAT64_NETWORK * expected.abs().max()
    if augment is not None:
        assert (actual - plain_labels).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("edm-cifar10-ddpmpp", 55.733891),
        ("edm-cifar10-ncsnpp", 56.397827),
        ("edm-64-ddpmpp", 61.805571),
        ("edm-64-ncsnpp", 62.761091),
        ("edm-imagenet64-adm", 295.899267),
    ],
)
def test_presets_have_the_published_sizes(preset, millions):
    """55.7, 61.8 and 295.9 million in table 7 of the paper, and to the last one what their code makes."""
    config = fd.UNetConfig.preset(preset)
    fixed = config.waves // 2 if config.time_embedding == "fourier" else 0
    assert num_parameters(config) - fixed == round(1e6 * millions)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("edm-cifar10-ddpmpp", {"channel_mult": [2, 2, 2]}),
        (
            "edm-cifar10-ncsnpp",
            {
                "channel_mult": [2, 2, 2],
                "embedding_type": "fourier",
                "channel_mult_noise": 2,
                "encoder_type": "residual",
                "resample_filter": [1, 3, 3, 1],
            },
        ),
    ],
)
def test_presets_are_the_settings_of_their_training_script(preset, settings):
    made = unet_config_from_edm("SongUNet", settings | {"augment_dim": 9, "dropout": 0.13})
    assert made == fd.UNetConfig.preset(preset)


def test_adm_preset_is_the_default_of_their_class():
    made = unet_config_from_edm("DhariwalUNet", {"img_resolution": 64, "label_dim": 1000})
    assert made == fd.UNetConfig.preset("edm-imagenet64-adm")
    assert not made.of_song


@pytest.mark.parametrize(
    ("network", "settings", "named"),
    [
        ("SongUNet", {"encoder_type": "skip"}, "encoder_type"),
        ("SongUNet", {"decoder_type": "skip"}, "decoder_type"),
        ("SongUNet", {"resample_filter": [1, 2, 1]}, "resample_filter"),
        ("SongUNet", {"channel_mult_emb": 2}, "channel_mult_emb"),
        ("SongUNet", {"width": 2}, "width"),
        ("Precond2", {}, "Precond2"),
    ],
)
def test_other_settings_are_refused_by_name(network, settings, named):
    with pytest.raises(ValueError, match=named):
        unet_config_from_edm(network, settings)


def test_tensors_that_do_not_fit_are_named():
    case = "ddpmpp with labels"
    tensors = plain(case).state_dict()
    config = config_of(case)
    with pytest.raises(ValueError, match=r"map_layer0\.bias is missing"):
        from_edm({name: value for name, value in tensors.items() if name != "map_layer0.bias"}, config)
    with pytest.raises(ValueError, match="more is unknown"):
        from_edm(tensors | {"more": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="resample_filter"):
        from_edm(tensors, dataclasses.replace(config, resample_filter=(1, 3, 3, 1)))
    with pytest.raises(ValueError, match="no names for a network with"):
        fd.convert.to_layout(fd.UNet(config).state_dict(), config, "openai")


@pytest.mark.parametrize("case", ["ddpmpp with labels", "ncsnpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_those_of_edms_network(case, dtype):
    """In training the modules run, in float32 with the fused ops; the Fourier features stay as they are."""
    model = plain(case)
    unet = own(case, model).to(dtype).train()
    x, t, y, one_hot = calls(case)
    model(x, t.to(dtype).double(), one_hot).square().mean().backward()
    unet(x.to(dtype), t.to(dtype), y).square().mean().backward()
    expected = from_edm({name: value.grad for name, value in model.named_parameters() if "augment" not in name}
                        | _fixed(model), unet.config)  # fmt: skip
    tolerance = FLOAT64_NETWORK if dtype == torch.float64 else FLOAT32_DEEP
    for name, parameter in unet.named_parameters():
        if name in ("time_freqs", "augment_emb.weight"):
            assert parameter.grad is None
        elif name != "label_emb.weight":
            error = (parameter.grad - expected[name]).abs().max()
            assert error <= 100 * tolerance * expected[name].abs().max() + tolerance, name


def _fixed(model):
    """What has no gradient."""
    fixed = dict(model.named_buffers())
    return fixed | {name: value for name, value in model.named_parameters() if "augment" in name}
