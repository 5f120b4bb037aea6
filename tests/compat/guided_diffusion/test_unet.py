"""The OpenAI drop-in's networks: their names, their files, and what they compute."""

import pytest
import torch

import fastdiff as fd
from fastdiff import convert
from fastdiff.compat.guided_diffusion import script_util, unet
from fastdiff.nets.unet import timestep_embedding
from support.guided_networks import tiny_model
from support.networks import random_unet, shaken, small_preset
from support.openai_networks import openai_names
from support.tolerances import FLOAT32_DEEP, FLOAT32_ROUNDING, FLOAT32_SUM


@pytest.mark.parametrize("flags", [{}, {"class_cond": True, "resblock_updown": True, "use_new_attention_order": True}])
def test_unet_model_has_openais_names_and_loads_them_and_ours(flags):
    model, _ = tiny_model(**flags)
    state = model.state_dict()
    assert set(state) == set(openai_names(model.config))
    # In the order of the parameters, on which optimizer files count.
    assert [value.numel() for value in state.values()] == [parameter.numel() for parameter in model.parameters()]
    assert state["middle_block.1.qkv.weight"].dim() == 3
    plain = fd.UNet(model.config).eval()
    plain.load_state_dict(convert.from_layout(state, model.config, "openai"))
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([7])
    y = torch.tensor([3]) if flags else None
    with torch.no_grad():
        expected = plain(x, t, y)
        assert torch.equal(model(x, t, y), expected)
        for given in (state, plain.state_dict()):
            again, _ = tiny_model(**flags)
            for parameter in again.parameters():
                parameter.zero_()
            again.load_state_dict(given)
            assert torch.equal(again(x, t, y), expected)
    state.pop("out.2.bias")
    with pytest.raises(RuntimeError, match=r"conv_out\.bias"):
        model.load_state_dict(state)


def test_unet_model_recomputes_with_use_checkpoint_and_gives_the_same_gradients():
    grads = []
    for flag in (False, True):
        model, _ = tiny_model(use_checkpoint=flag)
        model.train()
        x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        model(x, torch.tensor([3])).square().mean().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, second, rtol=FLOAT32_DEEP, atol=FLOAT32_ROUNDING)


def test_unet_model_in_half_precision_gives_the_type_of_its_input():
    model, _ = tiny_model(use_fp16=True)
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([7])
    with torch.no_grad():
        wide = model(x, t)
        model.convert_to_fp16()
        half = model(x, t)
    assert half.dtype == torch.float32
    # float16 has 11 bits, through some twenty layers.
    assert (half - wide).abs().max() < 0.02 * wide.abs().max()


def stays_wide(name):
    """Whether guided-diffusion keeps a tensor float32: it converts convolutions of the blocks, and nothing else."""
    parts = ("time_embed", "label_emb", "out.", ".in_layers.0", ".out_layers.0", ".emb_layers", ".norm.")
    return any(part in f".{name}" if part.startswith(".") else name.startswith(part) for part in parts)


@pytest.mark.parametrize("kind", [unet.UNetModel, unet.EncoderUNetModel])
def test_convert_to_fp16_leaves_norms_embeddings_and_the_last_layers(kind):
    options = {"num_head_channels": 16, "use_scale_shift_norm": True, "resblock_updown": True}
    options |= {"num_classes": 4} if kind is unet.UNetModel else {"pool": "attention"}
    model = shaken(kind(16, 3, 32, 6, 1, (2,), channel_mult=(1, 2), use_fp16=True, **options).eval(), 0.05)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([7, 900])
    y = [torch.tensor([0, 3])] if kind is unet.UNetModel else []
    with torch.no_grad():
        wide = model(x, t, *y)
        model.convert_to_fp16()
        half = model(x, t, *y)
    for name, value in model.state_dict().items():
        assert value.dtype == (torch.float32 if stays_wide(name) else torch.float16), name
    assert half.dtype == torch.float32
    # float16 has 11 bits, through some twenty layers.
    assert (half - wide).abs().max() < 0.02 * wide.abs().max()
    model(x, t, *y).square().mean().backward()
    assert all(parameter.grad.dtype == parameter.dtype for parameter in model.parameters())
    model.convert_to_fp32()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_network_in_half_precision_is_sampled_eagerly():
    model, diffusion = tiny_model(use_fp16=True, noise_schedule="cosine")
    model.convert_to_fp16()
    table = fd.samplers.ddim(diffusion.diffusion, 2)
    images = fd.sample(model, table, shape=(1, 3, 32, 32), seed=0)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    with pytest.raises(ValueError, match="computes in float32"):
        fd.sample(model, table, shape=(1, 3, 32, 32), seed=0, runner="native")


def test_super_res_model_scales_the_small_image_up():
    torch.manual_seed(0)
    model = unet.SuperResModel(32, 3, 32, 3, 1, (), channel_mult=(1, 2))
    with torch.no_grad():
        model.conv_out.weight.normal_()
    assert model.config.in_channels == 6
    x, t, low = torch.randn(1, 3, 32, 32), torch.tensor([5]), torch.randn(1, 3, 8, 8)
    up = torch.nn.functional.interpolate(low, (32, 32), mode="bilinear")
    with torch.no_grad():
        assert torch.equal(model(x, t, low_res=low), fd.UNet.forward(model, torch.cat([x, up], dim=1), t))
    with pytest.raises(ValueError, match="low_res"):
        model(x, t)


def classifier_reference(model, x, t):
    """guided-diffusion's encoder by its state dict alone: the attention pool, written out."""
    state = model.state_dict()
    h = x
    emb = model.time_embed(timestep_embedding(t, model.config.channels, "cos_sin"))
    for block in [*model.input_blocks, model.middle_block]:
        h = block(h, emb)
    h = torch.nn.functional.silu(
        torch.nn.functional.group_norm(h, 32, state["out.0.weight"], state["out.0.bias"], 1e-5)
    ).flatten(2)
    h = torch.cat([h.mean(-1, keepdim=True), h], -1) + state["out.2.positional_embedding"]
    qkv = (
        torch.einsum("oc,bcn->bon", state["out.2.qkv_proj.weight"][:, :, 0], h) + state["out.2.qkv_proj.bias"][:, None]
    )
    q, k, v = (part.view(x.shape[0], -1, 64, h.shape[-1]) for part in qkv.chunk(3, dim=1))
    weights = torch.softmax(torch.einsum("bhcn,bhcm->bhnm", q, k) / 8, dim=-1)
    out = torch.einsum("bhnm,bhcm->bhcn", weights, v).flatten(1, 2)[:, :, 0]
    return out @ state["out.2.c_proj.weight"][:, :, 0].T + state["out.2.c_proj.bias"]


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_encoder_unet_model_pools_and_saves_as_theirs(pool):
    torch.manual_seed(0)
    options = {"num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True, "pool": pool}
    model = shaken(unet.EncoderUNetModel(32, 3, 64, 10, 1, (2,), channel_mult=(1, 2), **options).eval(), 0.05)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    state = model.state_dict()
    keys = {
        "attention": {"out.0.weight", "out.2.positional_embedding", "out.2.qkv_proj.weight", "out.2.c_proj.bias"},
        "adaptive": {"out.0.bias", "out.3.weight"},
        "spatial": {"out.0.weight", "out.2.weight"},
        "spatial_v2": {"out.0.weight", "out.1.weight", "out.3.bias"},
    }[pool]
    assert keys <= set(state)
    body = [name for name in openai_names(model.config) if not name.startswith(("out", "label"))]
    assert set(body) == {name for name in state if not name.startswith("out.")}
    with torch.no_grad():
        logits = model(x, t)
        assert logits.shape == (2, 10)
        if pool == "attention":
            expected = classifier_reference(model, x, t)
            torch.testing.assert_close(
                logits, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM * float(expected.abs().max())
            )
        again = unet.EncoderUNetModel(32, 3, 64, 10, 1, (2,), channel_mult=(1, 2), **options).eval()
        again.load_state_dict(state)
        assert torch.equal(again(x, t), logits)


def test_random_unet_of_a_preset_is_their_model():
    config = small_preset(
        "adm-imagenet64", norm_groups=32, channels=32, head_channels=16, num_classes=1000, image_size=64
    )
    model, _ = tiny_model(
        image_size=64,
        channel_mult="1,2,3,4",
        attention_resolutions="32,16,8",
        num_head_channels=16,
        class_cond=True,
        learn_sigma=True,
        resblock_updown=True,
        use_new_attention_order=True,
        num_heads=1,
    )
    assert model.config == config
    model.load_state_dict(random_unet(config).state_dict())


# README of guided-diffusion: flags of its files, and the sizes in millions of table 11 of arXiv:2105.05233.
CLASSIFIERS = {64: (4, 65), 128: (2, 43), 256: (2, 54), 512: (2, 54)}
UPSAMPLERS = {
    256: ({"small_size": 64, "attention_resolutions": "32,16,8", "num_heads": 4}, 312),
    512: ({"small_size": 128, "attention_resolutions": "32,16", "num_head_channels": 64}, 309),
}


def millions(model):
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)


@pytest.mark.parametrize("size", CLASSIFIERS)
def test_published_classifiers_have_their_names_and_sizes(size):
    depth, count = CLASSIFIERS[size]
    with torch.device("meta"):
        model = script_util.create_classifier(
            **{**script_util.classifier_defaults(), "image_size": size, "classifier_depth": depth}
        )
    assert millions(model) == count
    body = {name for name in openai_names(model.config) if not name.startswith(("output_blocks.", "out."))}
    pool = {"out.0.weight", "out.0.bias", "out.2.positional_embedding"}
    pool |= {f"out.2.{name}.{part}" for name in ("qkv_proj", "c_proj") for part in ("weight", "bias")}
    assert set(model.state_dict()) == body | pool


@pytest.mark.parametrize("size", UPSAMPLERS)
def test_published_upsamplers_have_their_names_and_sizes(size):
    flags, count = UPSAMPLERS[size]
    flags = {**flags, "large_size": size, "class_cond": True, "learn_sigma": True, "num_channels": 192}
    flags |= {"num_res_blocks": 2, "resblock_updown": True, "use_scale_shift_norm": True}
    with torch.device("meta"):
        model, _ = script_util.sr_create_model_and_diffusion(
            **{**script_util.sr_model_and_diffusion_defaults(), **flags}
        )
    assert millions(model) == count
    state = model.state_dict()
    assert set(state) == set(openai_names(model.config))
    assert list(state["input_blocks.0.0.weight"].shape) == [192, 6, 3, 3]
    assert list(state["label_emb.weight"].shape) == [1000, 768]


# Sum of |w| over all weights of a network made after torch.manual_seed(0), from guided-diffusion at 22e0df8183 and, for
# the first, improved-diffusion at 1bc7bbbdc4 as well: each tensor was equal to the last bit.
FRESH = {
    "plain": (unet.UNetModel, {}, 15404.474001479886),
    "classes": (
        unet.UNetModel,
        {"num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 16},
        19540.35288100724,
    ),
    "pooled": (unet.UNetModel, {"conv_resample": False}, 14361.857123877833),
    "super-resolution": (unet.SuperResModel, {}, 15440.361393296043),
    "adaptive": (unet.EncoderUNetModel, {"pool": "adaptive", "num_head_channels": 16}, 7449.214658913606),
    "attention": (unet.EncoderUNetModel, {"pool": "attention", "num_head_channels": 16}, 8665.272405285175),
    "spatial": (unet.EncoderUNetModel, {"pool": "spatial", "num_head_channels": 16}, 22908.765938055898),
}


@pytest.mark.parametrize("name", FRESH)
def test_a_seed_gives_the_network_that_it_gives_there(name):
    kind, options, expected = FRESH[name]
    settings = {"image_size": 16, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 1}
    torch.manual_seed(0)
    model = kind(**settings, attention_resolutions=(2,), channel_mult=(1, 2), **options)
    total = sum(float(value.double().abs().sum()) for value in model.state_dict().values())
    assert total == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    # The generator stands where it stands there: what is drawn next is the same.
    follows = torch.rand(1)
    torch.manual_seed(0)
    kind(**settings, attention_resolutions=(2,), channel_mult=(1, 2), **options)
    assert torch.equal(torch.rand(1), follows)


@pytest.mark.parametrize("flags", [{}, {"class_cond": True, "resblock_updown": True, "use_new_attention_order": True}])
def test_unet_model_runs_in_the_engine(flags):
    model, _ = tiny_model(**flags)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([7, 900])
    y = torch.tensor([3, 1]) if flags else None
    with torch.no_grad():
        expected = model(x, t, y)
    compiled = fd.compile(model)
    assert (compiled(x, t, y) - expected).abs().max() < FLOAT32_DEEP * expected.abs().max()
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(50)), 2)
    options = {"shape": (2, 3, 32, 32), "progress": False, "model_kwargs": {"y": y} if flags else None}
    native, auto = (fd.sample(model, table, runner=runner, **options) for runner in ("native", "auto"))
    assert torch.equal(native, auto)


def test_super_res_model_runs_in_the_engine(monkeypatch):
    """Row by row, since it is given the small images as well."""
    settings = {"num_res_blocks": 1, "attention_resolutions": {2}, "channel_mult": (1, 2)}
    model = shaken(unet.SuperResModel(16, 3, 32, 3, **settings).eval(), 0.05)
    x, small, t = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 4), torch.tensor([7, 900])
    with torch.no_grad():
        expected = model(x, t, small)
    compiled = fd.compile(model)
    assert (compiled(x, t, low_res=small) - expected).abs().max() < FLOAT32_DEEP * expected.abs().max()
    with pytest.raises(ValueError, match="needs low_res"):
        compiled(x, t)
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(50)), 2)
    options = {"shape": (2, 3, 16, 16), "progress": False, "model_kwargs": {"low_res": small}}
    eager = fd.sample(model, table, runner="eager", **options)

    def refuse(*args, **kwargs):
        raise AssertionError("the module was called")

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", refuse)
    found = fd.sample(model, table, **options)
    assert (found - eager).abs().max() < FLOAT32_DEEP * eager.abs().max()
    with pytest.raises(ValueError, match="given more than the state"):
        fd.sample(model, table, runner="native", **options)


def test_a_subclass_of_unet_model_is_refused_by_the_engine():
    model, _ = tiny_model()
    model.__class__ = type("Changed", (unet.UNetModel,), {})
    with pytest.raises(ValueError, match="got Changed"):
        fd.compile(model)
