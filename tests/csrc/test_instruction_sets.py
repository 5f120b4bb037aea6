"""The C++ kernels' variants that this machine does not choose: the same comparisons, in a process for each.

A variant is chosen once per process. The checks are the tests of the ops and of the engine, called by name.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff import ops

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

TESTS = Path(__file__).parents[1]
CHECKS = """
import importlib.util, sys
sys.path.insert(0, "tests")
import torch, fastdiff._C
torch.set_num_threads(1)

def load(name):
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), f"tests/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

from support import op_cases
diffuse, step = load("ops/test_diffuse"), load("ops/test_step")
for layout in op_cases.FORMATS:
    for dtype in op_cases.DTYPES:
        for shape in op_cases.SHAPES[1:6]:
            diffuse.test_diffuse_matches_its_formula(shape, dtype, layout, "cpu")
            step.test_step_matches_the_formula_in_every_slot(shape, dtype, layout, True, "cpu")
diffuse.test_diffuse_normals_are_within_ulps_of_the_contract()
step.test_step_does_not_hide_nan_from_the_model("cpu")

losses = load("ops/test_losses_cpu")
for layout in losses.FORMATS:
    for dtype in losses.DTYPES:
        for shape in losses.SHAPES[:6]:
            losses.test_losses_match_float64(shape, dtype, layout)
for dtype in ("float32", "float64"):
    losses.test_decoder_probabilities_sum_to_one(dtype, 2 / 255)
    losses.test_decoder_matches_fifty_digits(dtype, 17)
    losses.test_losses_do_not_hide_nan(dtype, 1)
losses.test_losses_stay_finite_at_absurd_means_and_scales()
losses.test_losses_depend_on_the_sample_alone()
mse = load("ops/test_losses")
for dtype in mse.DTYPES:
    mse.test_mse_matches_float64((3, 5, 21, 13), dtype, "nhwc", "cpu")

dropout = load("ops/test_dropout")
for shape in dropout.SHAPES:
    for dtype in dropout.DTYPES:
        dropout.test_dropout_follows_the_noise_contract(shape, dtype, "nhwc", "cpu")

conv = load("ops/test_conv3x3")
for shape in conv.SHAPES:
    conv.test_conv3x3_and_its_gradients_match_float64(shape, "nhwc")

linear = load("ops/test_linear")
for shape in linear.SHAPES:
    linear.test_linear_and_its_gradients_match_float64(shape)

attention = load("ops/test_attention_cpu")
for shape in attention.SHAPES:
    attention.test_attention_cpu_matches_float64(shape, "legacy", "tokens")

norm = load("ops/test_group_norm_act")
for names in norm.OPTIONS:
    for dtype in ("float32", "bfloat16"):
        for shape, second, groups in norm.SHAPES:
            norm.test_group_norm_act_matches_pytorch_in_float64(shape, second, groups, names, dtype, "nhwc", "cpu")
        norm.test_group_norm_act_gradients_match_float64((1, 130, 6, 5), 70, 4, names, dtype, "nhwc")

engine = load("engine/test_native")
for case in ("ho", "adm", "grey"):
    engine.test_native_executor_is_the_network(case, (8, 24), "fast")
for case in engine.CONVOLUTIONS:
    engine.test_convolution_matches_float64(case, True, 2)
engine.test_attention_matches_float64((5, 13), 3, 48)
lucidrains = load("engine/test_lucidrains")
for residual in (False, True):
    lucidrains.test_pixel_norm_matches_float64(40, residual)
for op in ("memory_attention", "linear_attention"):
    lucidrains.test_attention_with_a_memory_matches_float64(op, (5, 13), 3, 40, 4)
lucidrains.test_native_executor_is_the_network("whole vectors", (8, 12))
for precision in ("fast", "bfloat16"):
    engine.test_native_does_not_depend_on_batch_or_threads("iddpm", precision)
half = load("engine/test_bfloat16")
for case in half.CONVOLUTIONS:
    half.test_convolution_in_bfloat16_is_near_float64(case, True, 2)
for case in half.DIRECT:
    half.test_products_of_bfloat16_numbers_are_exact(case, 2)
half.test_attention_in_bfloat16_is_near_float64((5, 13), 3, 48)
half.test_attention_with_keys_of_its_own_in_bfloat16_is_near_float64((5, 13), 48)
half.test_bfloat16_is_as_near_to_float64_as_pytorchs("adm", (8, 24))
print(fastdiff._C.cpu_isa())
"""


def run(isa, code):
    environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS.parent, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16"])
def test_every_instruction_set_passes_the_tests_of_the_kernels(isa):
    import fastdiff._C

    if fastdiff._C.cpu_isa() == isa:
        pytest.skip(f"{isa} is what all other tests run on here")
    done = run(isa, CHECKS)
    if "must be one of" in done.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == isa


def test_an_unknown_instruction_set_is_refused():
    done = run("mmx", "import torch, fastdiff._C; fastdiff._C.cpu_isa()")
    assert done.returncode != 0
    assert "FASTDIFF_CPU_ISA must be one of" in done.stderr


BITS = """
import hashlib
import torch
import fastdiff as fd
from fastdiff import ops, samplers
from fastdiff.nets.lucidrains import Unet
torch.set_num_threads(1)
torch.manual_seed(0)

def show(name, *tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    print(name, digest.hexdigest())

def image(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()

def attend(qkv):
    return ops.attention(qkv, 2, implementation="cpu")

diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(50))
table = torch.tensor(diffusion.noising_table(), dtype=torch.float32)
show("diffuse", *ops.diffuse(image(3, 5, 9, 7).detach(), torch.tensor([0, 20, 49]), table, seed=3))
for name, op, inputs in (
    ("conv3x3", ops.conv3x3, (image(2, 32, 9, 13), image(48, 32, 3, 3), torch.randn(48, requires_grad=True))),
    ("linear", ops.linear, [torch.randn(s, requires_grad=True) for s in ((70, 33), (130, 33), (130,))]),
    ("attention", attend, [torch.randn(2, 70, 96).requires_grad_()]),
    ("mse", ops.mse, (image(2, 3, 9, 7), image(2, 3, 9, 7).detach())),
    ("norm", lambda *a: ops.group_norm_act(*a, 5), (image(2, 70, 9, 7), *(torch.randn(2, 70).requires_grad_()))),
):
    y = op(*inputs)
    show(name, y, *torch.autograd.grad(y.square().sum(), [v for v in inputs if v.requires_grad]))
for change in ({}, {"num_heads": 1, "resblock_updown": True, "scale_shift_norm": True}):
    config = dict(image_size=16, in_channels=3, out_channels=3, channels=32, channel_mult=(1, 2), num_res_blocks=1)
    config |= dict(norm_groups=8, attention_resolutions=(8,), num_heads=2, dropout=0.0)
    unet = fd.UNet(fd.UNetConfig(**config | change)).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    table = samplers.dpmpp_sde(diffusion, 6)
    show("images", fd.sample(unet, table, shape=(3, 3, 16, 16), seed=3, runner="native", progress=False))
net = Unet(dim=32, dim_mults=(1, 2), attn_dim_head=20).eval()
show("lucidrains", fd.sample(net, table, shape=(3, 3, 16, 16), seed=3, runner="native", progress=False))
"""


def test_avx2_and_avx512_have_the_same_bits():
    """Noise, losses, the layers of training in channels_last, and whole images of the engine."""
    found = [run(isa, BITS) for isa in ("avx2", "avx512")]
    for done in found:
        if "must be one of" in done.stderr:
            pytest.skip("this processor does not run both")
        assert done.returncode == 0, done.stderr[-3000:]
    assert found[0].stdout.count("\n") == 9
    assert found[0].stdout == found[1].stdout
