"""Every shipped GPU kernel compiled ahead of time, with no GPU: nothing spills, accesses are wide."""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report

# Of a configuration in bench/kernel_report.py: loads and stores of tensors, {bytes per thread and instruction: count}.
# The few loads of ids, rows and coefficients (4 or 8 bytes each) come on top.
CONTIGUOUS = {
    "diffuse float32": ({16: 2}, {16: 4}),
    "diffuse float32, x_t only": ({16: 2}, {16: 2}),
    "diffuse float32, given noise": ({16: 4}, {16: 4}),
    "diffuse float32, 28x28": ({16: 2}, {16: 4}),
    "diffuse bfloat16": ({16: 1}, {16: 2}),
    "diffuse float16": ({16: 1}, {16: 2}),
    # 16 bytes to write are 4 float32 numbers, from 4 bytes, or 8 16-bit ones, from 8 bytes.
    "diffuse uint8 to float32": ({4: 1}, {16: 2}),
    "diffuse uint8 to bfloat16": ({8: 1}, {16: 2}),
    "step float32": ({16: 4}, {16: 2}),
    "step bfloat16": ({16: 2}, {16: 1}),
    "step float16": ({16: 2}, {16: 1}),
    "step float32, bfloat16 model": ({16: 1, 8: 1}, {16: 1}),
    "step float32, learned variance": ({16: 6}, {16: 2}),
    "step float32, row per sample": ({16: 4}, {16: 2}),
    "step float32, given noise": ({16: 6}, {16: 2}),
    "step float32, history 3, base, pred": ({16: 12}, {16: 8}),
    "step float32, captured": ({16: 4}, {16: 2}),
    "step float32, 7 billion elements": ({16: 4}, {16: 2}),
}
# Three channels: 16 places of a thread in a tile of four channels, one element each.
CHANNELS_LAST = {
    "diffuse float32 nhwc": ({4: 16}, {4: 32}),
    "diffuse bfloat16 nhwc": ({2: 16}, {2: 32}),
    "diffuse uint8 to bfloat16 nhwc": ({1: 16}, {2: 32}),
    "diffuse float32 nhwc, 4 channels": ({16: 2}, {16: 4}),
    "step float32 nhwc": ({4: 32}, {4: 16}),
    "step bfloat16 nhwc": ({2: 32}, {2: 16}),
    "step float32 nhwc, bfloat16 model": ({4: 16, 2: 16}, {4: 16}),
    "step float32 nhwc, learned variance": ({4: 48}, {4: 16}),
    "step float32 nhwc, history 3, base, pred": ({4: 96}, {4: 64}),
    "step float32 nhwc, 4 channels": ({16: 4}, {16: 2}),
    "step float32 nhwc, captured": ({4: 32}, {4: 16}),
    "diffuse bfloat16 nhwc, captured": ({2: 16}, {2: 32}),
    "step float32 nhwc, 7 billion elements": ({4: 32}, {4: 16}),
}
# The state is read by single elements, channels being apart in it; 8 channels or 4 are written at once. The last store
# of 4 bytes is the time, the one before it the vector.
SELECT = {
    "select float32 to bfloat16": {16: 2},
    "select float32": {16: 4},
    "select float32 to float16 nchw": {16: 1},
}
OTHERS = ["diffuse float32, 5x7", "diffuse float32 nhwc, 5x7", "step float32 nhwc, 5x7"]
OTHERS += ["step float32, nhwc model", "step float32 nhwc, nchw model"]
# Group norm: 16-byte loads at least, of tensors and of rows of parameters (a tensor that is not kept in registers is
# loaded twice), and 16-byte stores. The few others are of one number per group or channel.
GROUP_NORM = {
    "group norm bfloat16 nhwc, 128x32x32": (6, 2),
    "group norm float16 nhwc, 256x16x16": (6, 2),
    "group norm float32 nhwc, 256x16x16": (6, 4),
    "group norm bfloat16 nhwc, 512x4x4": (2, 2),
    "group norm bfloat16 nhwc, scale": (8, 2),
    "group norm bfloat16 nhwc, residual": (11, 4),
    "group norm bfloat16 nhwc, 256+128": (10, 2),
    "group norm bfloat16 nhwc, 256+128, residual": (12, 4),
    "group norm float32 nhwc, 256+256": (6, 4),
    "group norm bfloat16 nchw": (2, 2),
    "group norm float32 nchw": (4, 4),
    "group norm bfloat16 nhwc, split, first": (2, 0),
    "group norm bfloat16 nhwc, split, second": (6, 2),
    "group norm backward bfloat16 nhwc, 128x32x32": (8, 2),
    "group norm backward float16 nhwc, 256x16x16": (8, 2),
    "group norm backward float32 nhwc, 256x16x16": (10, 4),
    "group norm backward bfloat16 nhwc, 512x4x4": (4, 2),
    "group norm backward bfloat16 nhwc, scale": (10, 2),
    "group norm backward bfloat16 nhwc, residual": (10, 2),
    "group norm backward bfloat16 nhwc, 256+128": (16, 4),
    "group norm backward float32 nhwc, 256+256": (10, 4),
    "group norm backward bfloat16 nchw": (4, 2),
    "group norm backward float32 nchw": (8, 4),
    "group norm backward bfloat16 nhwc, split, first": (10, 0),
    "group norm backward bfloat16 nhwc, split, second": (18, 2),
}
GROUP_NORM_OTHERS = ["group norm float32 nhwc, 5x7", "group norm float32 nchw, 5x7"]
GROUP_NORM_OTHERS += ["group norm backward float32 nhwc, 5x7", "group norm backward float32 nchw, 5x7"]
# The compiler's middle end is the same for all targets; a part of the configurations stands for the rest.
ELSEWHERE = ["diffuse float32", "diffuse bfloat16", "diffuse float32 nhwc", "step float32", "step bfloat16 nhwc"]
ELSEWHERE += ["step float32, history 3, base, pred"]
ELSEWHERE += [name for name in GROUP_NORM if "bfloat16 nhwc" in name] + GROUP_NORM_OTHERS


def check(name, target):
    kernel = kernel_report.compile_launch(kernel_report.SHIPPED[name], target)
    found = kernel_report.inspect(kernel)
    assert found.spills == 0
    assert found.registers <= 168
    return kernel, found


def check_widths(found, loads, stores):
    assert found.stores == stores
    assert all(found.loads[width] >= count for width, count in loads.items()), found.loads
    assert max(loads) == 16 or found.loads[16] == 0


def test_every_shipped_kernel_has_its_test():
    tested = [*CONTIGUOUS, *CHANNELS_LAST, *SELECT, *OTHERS, *GROUP_NORM, *GROUP_NORM_OTHERS]
    here = [name for name in kernel_report.SHIPPED if name.startswith(("diffuse", "step", "select", "group norm"))]
    assert sorted(tested) == sorted(here)
    # Each of the others has a file of its own.
    elsewhere = (
        "attention",
        "posterior mean",
        "dropout",
        "statistics",
        "norm factors",
        "mse",
        "bound loss",
        "bound terms",
        "conv",
    )
    assert all(name.startswith(elsewhere) for name in set(kernel_report.SHIPPED) - set(here))


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_contiguous_kernels_have_wide_accesses(name):
    kernel, found = check(name, "sm_90")
    check_widths(found, *CONTIGUOUS[name])
    assert found.shared == 0, "the noise is not drawn where it is used"
    assert "f64" not in kernel.asm["ptx"]


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_channels_last_kernels_move_their_noise_once(name):
    kernel, found = check(name, "sm_90")
    check_widths(found, *CHANNELS_LAST[name])
    moves = [line for line in kernel.asm["ttgir"].splitlines() if "ttg.convert_layout" in line and "f32" in line]
    assert len(moves) == 1, moves
    assert found.shared <= 4096


@pytest.mark.parametrize("name", SELECT)
def test_select_has_wide_stores(name):
    _, found = check(name, "sm_90")
    assert found.registers <= 64
    assert all(found.stores[width] >= count for width, count in SELECT[name].items()), found.stores


def check_group_norm_widths(found, loads, stores):
    assert found.loads[16] + found.async_loads[16] >= loads
    assert found.stores[16] == stores
    assert found.stores.total() - stores <= 4, found.stores


@pytest.mark.parametrize("name", GROUP_NORM)
def test_group_norm_has_wide_accesses(name):
    kernel, found = check(name, "sm_90")
    check_group_norm_widths(found, *GROUP_NORM[name])
    assert found.registers * 32 * kernel.metadata.num_warps <= 65536, "not even one program fits on a multiprocessor"
    assert "f64" not in kernel.asm["ptx"]


@pytest.mark.parametrize("name", [*OTHERS, *GROUP_NORM_OTHERS])
def test_kernels_that_cannot_be_wide_compile(name):
    check(name, "sm_90")


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_kernels_compile_for_other_targets(target, name):
    _, found = check(name, target)
    if name in CONTIGUOUS and target == "sm_80":
        check_widths(found, *CONTIGUOUS[name])
    if name in GROUP_NORM and target == "sm_80":
        check_group_norm_widths(found, *GROUP_NORM[name])
