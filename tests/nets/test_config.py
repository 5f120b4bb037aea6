"""UNetConfig: published sizes, presets, JSON, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from fastdiff.nets.config import EDM_PRESETS
from fastdiff.nets.unet import (
    PRESETS,
    UNet,
    UNetConfig,
    num_parameters,
)


@pytest.mark.parametrize(("preset", "count"), [("ho-cifar10", 35_746_307), ("ho-256", 113_673_219)])
def test_unet_parameter_count_is_that_of_ho(preset: str, count: int) -> None:
    assert num_parameters(PRESETS[preset]) == count


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("adm-imagenet64", 296), ("adm-imagenet128", 422), ("adm-imagenet256", 554), ("adm-imagenet512", 559)],
)
def test_unet_parameter_count_is_that_of_adm(preset: str, millions: int) -> None:
    # The paper gives three digits.
    assert num_parameters(PRESETS[preset]) == pytest.approx(millions * 1e6, rel=0.01)


def test_unet_parameter_count_is_that_of_improved_diffusion() -> None:
    # The README of improved-diffusion calls this network "270M parameters": two digits.
    config = UNetConfig.preset("iddpm-imagenet64", channels=192, num_classes=1000)
    assert 265e6 <= num_parameters(config) <= 275e6


def test_unet_parameter_count_needs_no_allocation() -> None:
    count = num_parameters(PRESETS["digits"])
    assert count == sum(parameter.numel() for parameter in UNet(PRESETS["digits"]).parameters())
    assert 500_000 <= count <= 1_500_000


@pytest.mark.parametrize("preset", PRESETS | EDM_PRESETS)
def test_unet_config_survives_json(preset: str) -> None:
    config = (PRESETS | EDM_PRESETS)[preset]
    back = UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert hash(back) == hash(config)


def test_unet_preset_overrides_fields() -> None:
    config = UNetConfig.preset("adm-imagenet256", num_classes=None, dropout=0.2)
    assert (config.num_classes, config.dropout, config.channels) == (None, 0.2, 256)
    assert UNetConfig.preset("ho-cifar10") == UNetConfig() == PRESETS["ho-cifar10"]


def test_unet_config_levels_of_the_largest_network() -> None:
    config = PRESETS["adm-imagenet512"]
    assert config.level_channels == (128, 256, 256, 512, 512, 1024, 1024)
    assert config.level_sizes == (512, 256, 128, 64, 32, 16, 8)
    assert config.size_divisor == 64
    assert config.heads(512) == 8


@pytest.mark.parametrize(
    ("call", "match"),
    [
        pytest.param(
            lambda: UNetConfig.preset("ho-cifar"), "unknown preset 'ho-cifar'; did you mean 'ho-cifar10'", id="preset"
        ),
        pytest.param(lambda: UNetConfig.preset("zzz"), "choose from ho-cifar10, ho-256", id="far_preset"),
        pytest.param(
            lambda: UNetConfig.preset("ho-256", chanels=64),
            "unknown UNetConfig field 'chanels'; did you mean 'channels'",
            id="override",
        ),
        pytest.param(
            lambda: UNetConfig.from_dict({"droput": 0.1}), "field 'droput'; did you mean 'dropout'", id="from_dict"
        ),
    ],
)
def test_unet_config_names_the_nearest(call: Callable[[], UNetConfig], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channels": 0}, "channels must be an int, at least 1, got 0"),
        ({"num_res_blocks": True}, "num_res_blocks must be an int, at least 1, got True"),
        ({"image_size": 32.0}, "image_size must be an int, at least 1, got 32.0"),
        ({"num_classes": 0}, "num_classes must be an int, at least 1, got 0"),
        ({"head_channels": -1}, "head_channels must be an int, at least 1, got -1"),
        ({"scale_shift_norm": 1}, "scale_shift_norm must be true or false, got 1"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, "dropout must be a number"),
        ({"norm_eps": 0.0}, "norm_eps must be a number in"),
        ({"norm_eps": math.nan}, "norm_eps must be a number in"),
        ({"time_embedding": "cos-sin"}, "unknown time_embedding 'cos-sin'; did you mean 'cos_sin'"),
        ({"downsample_padding": "same"}, "unknown downsample_padding 'same'"),
        ({"qkv_layout": "legcy"}, "unknown qkv_layout 'legcy'; did you mean 'legacy'"),
        ({"channel_mult": ()}, "channel_mult must name at least one level"),
        ({"channel_mult": "1,2"}, "channel_mult must be a tuple or list of numbers, got '1,2'"),
        ({"channel_mult": (1, 0)}, "channel_mult must hold positive numbers, got 0"),
        ({"channel_mult": (1, math.inf)}, "channel_mult must hold positive numbers, got inf"),
        ({"channel_mult": (1, 1.001)}, "must be a multiple of norm_groups=32, got 128 \\* 1.001 = 128.128"),
        ({"channels": 48}, "must be a multiple of norm_groups=32, got 48"),
        ({"channels": 9, "norm_groups": 9}, "channels must be even and at least 4"),
        ({"channels": 2, "norm_groups": 1}, "channels must be even and at least 4 for time_embedding='sin_cos', got 2"),
        ({"image_size": 36}, "image_size must be divisible by 8 for 4 levels, got 36"),
        ({"image_size": 64, "attention_resolutions": (12,)}, r"of this network, \[64, 32, 16, 8\] .*, got 12"),
        ({"attention_resolutions": ("16",)}, "attention_resolutions must be an int, at least 1, got '16'"),
        ({"num_heads": 3}, "num_heads must divide the 256 channels of the attention at size 16, got 3"),
        (
            {"head_channels": 96, "attention_resolutions": ()},
            "head_channels must divide the 256 channels of the attention at size 4, got 96",
        ),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_unet_config_errors_are_clear(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNetConfig.from_dict(fields)


def test_unet_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        UNetConfig().channels = 64  # type: ignore[misc]


def test_networks_of_before_are_written_as_before() -> None:
    assert all("skip_scale" not in config.to_dict() and not config.of_song for config in PRESETS.values())
    assert list(UNetConfig().to_dict())[-1] == "qkv_layout"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"skip_scale": 0}, "skip_scale must be a number in"),
        ({"resample_filter": (1, 2, 1)}, "resample_filter must be"),
        ({"input_pyramid": True}, "set resblock_updown"),
        ({"resample_filter": (1, 3, 3, 1)}, "set resblock_updown"),
        ({"stem_channels": 33}, "stem_channels must be a multiple"),
        ({"time_channels": 3}, "time_channels must be even"),
        ({"decoder_attention": "first"}, "decoder_attention"),
        ({"label_place": "nowhere"}, "label_place"),
        ({"augment_channels": 0}, "augment_channels"),
        ({"min_group_channels": 0}, "min_group_channels"),
    ],
)
def test_fields_of_songs_networks_are_checked(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNetConfig(**fields)
