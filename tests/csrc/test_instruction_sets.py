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
import sys
sys.path.insert(0, "tests")
import torch, fastdiff._C
torch.set_num_threads(1)
from support.by_path import load

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
    for case in ("ho", "iddpm", "adm", "grey", "one head of 40 channels"):
        engine.test_native_does_not_depend_on_batch_or_threads(case, precision)
lucidrains.test_native_does_not_depend_on_batch_or_threads("heads of 20 channels")
training = load("nets/test_training_pass")
for name in ("ho-cifar10", "scale and shift", "legacy heads"):
    training.test_bits_do_not_depend_on_the_number_of_threads(name)
torch.set_num_threads(1)
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


# What one computes the other does, to the bit.
SAME = ("avx2", "avx512")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16", "avx512amx"])
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


def test_avx2_and_avx512_have_the_same_bits():
    """Noise, losses, every instruction of a plan in both precisions, and of training, and whole images."""
    found = [run(isa, 'import sys; sys.path.insert(0, "tests"); from support import bits; bits.main()') for isa in SAME]
    for done in found:
        if "must be one of" in done.stderr:
            pytest.skip("this processor does not run both")
        assert done.returncode == 0, done.stderr[-3000:]
    assert found[0].stdout.count("\n") > 400
    assert found[0].stdout == found[1].stdout
