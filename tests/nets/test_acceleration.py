"""fd.accelerate on other people's networks: the same results, names and hooks, and the way back.

Oracle: the networks themselves before the call, diffusers' and lucidrains' live.
"""

import copy
import io
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff as fd
from fastdiff.nets import unet
from fastdiff.nets.acceleration import accelerate
from fastdiff.nets.fused_modules import Fused
from support import openai_networks as openai
from support.networks import fan_scaled, image
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM, FLOAT64_DIFFERENCE

TIMES = torch.tensor([3, 700])


def diffusers_unet(**changes):
    diffusers = pytest.importorskip("diffusers")
    settings = {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return fan_scaled(diffusers.UNet2DModel(**(settings | changes))).eval()


def lucidrains():
    """denoising-diffusion-pytorch, whose imports of torchvision and accelerate its networks do not use."""
    stubs = {name: types.ModuleType(name) for name in ("torchvision", "accelerate")}
    stubs["torchvision"].transforms = stubs["torchvision"].utils = None
    stubs["accelerate"].Accelerator = None
    missing = {name: stub for name, stub in stubs.items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        return pytest.importorskip("denoising_diffusion_pytorch.denoising_diffusion_pytorch", exc_type=ImportError)
    finally:
        for name in missing:
            del sys.modules[name]


class OldBlock(nn.Module):
    """lucidrains' Block as it was with group norm."""

    def __init__(self, dim, dim_out, groups=4):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, dim_out)
        self.act = nn.SiLU()

    def forward(self, x, scale_shift=None):
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.act(x)


OldBlock.__name__ = "Block"
OldBlock.__qualname__ = "OldBlock"

NETWORKS = {
    "diffusers": lambda: diffusers_unet(),
    "diffusers, scale and shift": lambda: diffusers_unet(resnet_time_scale_shift="scale_shift"),
    "diffusers, resnet resampling": lambda: diffusers_unet(
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift"
    ),
    "diffusers, one head": lambda: diffusers_unet(attention_head_dim=None, norm_eps=1e-3),
    "openai": lambda: fan_scaled(openai.UNetModel()).eval(),
    "openai, scale and shift": lambda: fan_scaled(openai.UNetModel(use_scale_shift_norm=True)).eval(),
    "openai, new layout": lambda: fan_scaled(openai.UNetModel(openai.QKVAttention(2))).eval(),
    "openai, improved": lambda: fan_scaled(openai.UNetModel(openai.ImprovedQKVAttention())).eval(),
    "lucidrains": lambda: fan_scaled(lucidrains().Unet(8, dim_mults=(1, 2), attn_dim_head=8)).eval(),
}


def evaluate(model, x=None, times=TIMES):
    y = model(image() if x is None else x, times)
    return y if isinstance(y, torch.Tensor) else y.sample


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("network", NETWORKS)
def test_accelerate_keeps_the_results_and_restore_everything(network, layout):
    model = NETWORKS[network]().double().to(memory_format=layout)
    x, times = image(dtype=torch.float64), TIMES.double() if network == "lucidrains" else TIMES
    if network.startswith(("openai", "lucidrains")):
        # Both compute parts of themselves in float32.
        model, x, times = model.float(), x.float(), times.float()
    classes = {name: type(module) for name, module in model.named_modules()}
    state, expected = dict(model.state_dict(keep_vars=True)), evaluate(model, x, times)
    report = fd.accelerate(model)
    assert report.replaced
    found = evaluate(model, x, times)
    # Rounding alone: float64 but for the times' embedding, whose float32 is the same before and after.
    limit = 1e-10 if x.dtype == torch.float64 else 2e-5
    assert float((found - expected).detach().abs().max() / expected.detach().abs().max()) < limit
    now = model.state_dict(keep_vars=True)
    assert list(now) == list(state)
    assert all(now[name] is state[name] for name in state)
    assert all(isinstance(module, classes[name]) for name, module in model.named_modules())
    assert fd.restore(model) == len(report.replaced)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert torch.equal(evaluate(model, x, times), expected)
    assert fd.restore(model) == 0


class Calls(TorchDispatchMode):
    """Names of the ops on images, and of fastdiff's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket._qualified_op_name
        if name.startswith("fastdiff::") or (isinstance(args[0], torch.Tensor) and args[0].ndim == 4):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def __init__(self):
        super().__init__()
        self.names = []


@pytest.mark.parametrize("network", ["diffusers", "diffusers, scale and shift", "openai", "openai, scale and shift"])
def test_accelerate_leaves_no_norm_and_no_silu_of_its_own(network):
    model = NETWORKS[network]()
    num_norms = sum(isinstance(module, nn.GroupNorm) for module in model.modules())
    # The modules alone: the engine would run the whole of diffusers' network.
    report = accelerate(model)
    assert not report.left
    with Calls() as calls, torch.no_grad():
        evaluate(model)
    assert calls.names.count("fastdiff::group_norm_act") == num_norms
    assert not {"aten::silu", "aten::native_group_norm", "aten::bmm"} & set(calls.names)


def test_accelerate_takes_the_block_of_old_lucidrains_versions():
    block = fan_scaled(OldBlock(3, 8))
    scale_shift = tuple(torch.randn(2, 8, 1, 1, generator=torch.Generator().manual_seed(i)) for i in (2, 3))
    expected = block(image()), block(image(), scale_shift)
    report = fd.accelerate(block)
    assert "Block" in [r.kind for r in report.replaced]
    for ours, theirs in zip((block(image()), block(image(), scale_shift)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=FLOAT32_SUM)


class OwnBlock(OldBlock):
    def forward(self, x, scale_shift=None):
        return self.act(self.norm(self.proj(x)) + 0.1)


OwnBlock.__name__ = "Block"


def test_accelerate_does_not_believe_a_name():
    block = fan_scaled(OwnBlock(3, 8))
    expected = block(image())
    report = fd.accelerate(block)
    assert [r.name for r in report.replaced] == ["norm"]
    assert [(left.kind, left.reason.partition(";")[0]) for left in report.left] == [
        ("Block", "it does not compute what its class is known for")
    ]
    assert torch.allclose(block(image()), expected, atol=FLOAT32_SUM)

    class GroupNorm32(nn.GroupNorm):
        def forward(self, x):
            return super().forward(x) * 2

    class QKVAttention(nn.Module):
        def forward(self, qkv):
            return qkv[:, : qkv.shape[1] // 3]

    for module, reason in ((GroupNorm32(2, 4), "forward of its own"), (QKVAttention(), "none of the known layouts")):
        report = fd.accelerate(module)
        assert not report.replaced
        assert reason in report.left[0].reason


def test_accelerate_keeps_hooks():
    model = diffusers_unet()
    block = model.down_blocks[0].resnets[0]
    seen = {}

    def watch(name, module):
        module.register_forward_hook(lambda module, args, output: seen.setdefault(name, []).append(output))

    watch("norm before", block.norm1)
    watch("block", block)
    evaluate(model)
    fd.accelerate(model)
    watch("norm after", block.norm2)
    watch("last norm", model.mid_block.resnets[0].norm1)
    expected = seen.copy()
    seen.clear()
    evaluate(model)
    for name in ("norm before", "block"):
        assert torch.allclose(seen[name][0], expected[name][0], atol=FLOAT32_DEEP)
    fd.restore(model)
    plain = {name: values[0] for name, values in seen.items()}
    seen.clear()
    evaluate(model)
    for name in ("norm after", "last norm"):
        assert torch.allclose(seen[name][0], plain[name], atol=FLOAT32_DEEP)


def test_accelerate_gives_the_gradients():
    plain = diffusers_unet(resnet_time_scale_shift="scale_shift").double()
    fused = copy.deepcopy(plain)
    fd.accelerate(fused)
    grads = []
    for model in (plain, fused):
        x = image(dtype=torch.float64).requires_grad_()
        evaluate(model, x).square().mean().backward()
        grads.append({"x": x.grad} | {name: p.grad for name, p in model.named_parameters()})
    for name, expected in grads[0].items():
        assert float((grads[1][name] - expected).abs().max()) <= FLOAT64_DIFFERENCE * max(
            1, float(expected.abs().max())
        ), name


def test_accelerate_under_autocast():
    model = diffusers_unet()
    with torch.no_grad():
        exact = evaluate(model)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = evaluate(model)
            fd.accelerate(model)
            ours = evaluate(model)
    assert ours.dtype == theirs.dtype
    # bfloat16 in both: ours may not be further from float32 than twice theirs.
    assert float((ours - exact).abs().max()) <= 2 * float((theirs - exact).abs().max())


@pytest.mark.parametrize("network", ["diffusers", "openai, scale and shift"])
def test_accelerated_networks_compile_in_one_graph(network):
    model = NETWORKS[network]()
    fd.accelerate(model)
    expected = evaluate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(evaluate(compiled), expected, atol=FLOAT32_SUM)


@pytest.mark.parametrize("network", ["diffusers", "openai", "openai, improved"])
def test_accelerated_networks_are_copied_and_pickled(network):
    model = NETWORKS[network]()
    report = fd.accelerate(model)
    expected = evaluate(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(evaluate(other), expected)
        assert fd.restore(other) == len(report.replaced)
    assert fd.restore(model) == len(report.replaced)


def test_accelerate_twice_changes_nothing():
    model = diffusers_unet()
    first = fd.accelerate(model)
    classes = [type(module) for module in model.modules()]
    assert fd.accelerate(model) == first
    assert [type(module) for module in model.modules()] == classes


def test_accelerate_keeps_the_mode():
    model = diffusers_unet().train()
    model.mid_block.eval()
    modes = [module.training for module in model.modules()]
    fd.accelerate(model, check=(image(), TIMES))
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("check", [(image(), TIMES), {"sample": image(), "timestep": 3}])
def test_accelerate_checks_itself(check):
    model = diffusers_unet()
    state = torch.get_rng_state()
    report = fd.accelerate(model, check=check)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 <= report.error < FLOAT32_DEEP
    errors = [r.error for r in report.replaced if r.kind in ("ResnetBlock2D", "Attention")]
    assert errors
    assert all(0 <= error < FLOAT32_DEEP for error in errors)
    assert "largest difference" in str(report)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accelerate_of_a_network_in_16_bits(dtype):
    model, exact = diffusers_unet().to(dtype), diffusers_unet()
    expected, theirs = evaluate(exact), evaluate(model, image(dtype=dtype))
    report = fd.accelerate(model, check=(image(dtype=dtype), TIMES))
    ours = evaluate(model, image(dtype=dtype))
    assert report.error > 0
    assert ours.dtype == dtype
    assert float((ours - expected).abs().max()) <= 2 * float((theirs - expected).abs().max())


def test_accelerate_checks_a_network_of_one_tensor():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.SiLU())
    assert fd.accelerate(layers, check=image()).error < FLOAT32_SUM


def test_accelerate_restores_and_raises_where_the_check_fails(monkeypatch):
    from fastdiff.nets import fused_modules

    model = diffusers_unet()
    expected = evaluate(model)
    with pytest.raises(RuntimeError, match=r"outputs before and after differ by .* at most 0\.0e"):
        fd.accelerate(model, check=(image(), TIMES), tolerance=0.0)
    assert not any(isinstance(module, Fused) for module in model.modules())

    right = fused_modules.norm_act
    monkeypatch.setattr(fused_modules, "norm_act", lambda *a, **k: right(*a, **k) + 0.01)
    with pytest.raises(RuntimeError, match="differs from its own class"):
        fd.accelerate(model, check=(image(), TIMES))
    assert not any(isinstance(module, Fused) for module in model.modules())
    assert torch.equal(evaluate(model), expected)


def test_accelerate_restores_where_the_example_does_not_fit():
    model = diffusers_unet()
    with pytest.raises(RuntimeError):
        fd.accelerate(model, check=(image(channels=5), TIMES))
    assert not any(isinstance(module, Fused) for module in model.modules())


def test_accelerate_tells_what_it_left_and_why():
    class LinearAttention(nn.Module):
        pass

    class Other(nn.GroupNorm):
        def forward(self, x):
            return super().forward(x) + 1

    patched = nn.GroupNorm(2, 4)
    patched.forward = patched.forward
    model = nn.ModuleDict(
        {
            "bare": nn.GroupNorm(2, 4, affine=False),
            "other": Other(2, 4),
            "patched": patched,
            "batch": nn.BatchNorm2d(4),
            "linear": LinearAttention(),
            "huge": nn.GroupNorm(1, 4097),
            "own": unet.GroupNormAct(4, 2, 1e-5),
            "good": nn.GroupNorm(2, 4),
        }
    )
    report = fd.accelerate(model)
    assert [r.name for r in report.replaced] == ["good"]
    reasons = {left.name: left.reason for left in report.left}
    assert reasons["bare"] == "it has no weight and bias"
    assert "forward of its own" in reasons["other"]
    assert "on the instance" in reasons["patched"]
    assert reasons["batch"] == "not a group norm"
    assert reasons["linear"] == "no fused op computes this class"
    assert "4096 channels" in reasons["huge"]
    assert reasons["own"] == "fastdiff's own, fused already"
    text = str(report)
    assert "1 modules replaced" in text
    assert "left 1 x LinearAttention: no fused op computes this class (linear)" in text


def test_accelerate_refuses_what_is_no_network():
    class Whole:
        unet = nn.Conv2d(1, 1, 1)

    with pytest.raises(TypeError, match=r"got Whole: give its network, \.unet$"):
        fd.accelerate(Whole())
    with pytest.raises(TypeError, match="model must be a torch"):
        fd.accelerate(lambda x: x)
    with pytest.raises(ValueError, match="comes with check"):
        fd.accelerate(nn.ReLU(), tolerance=0.1)
