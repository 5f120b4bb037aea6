"""What the presets' networks launch on a GPU, compiled ahead of time: no layer makes a kernel spill."""

import functools

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report
from kernel_configs_group_norm import group_norm_case
from kernel_configs_presets import preset_cases

from fastdiff.nets.config import PRESETS

SHARED_LIMIT = 227 * 1024
SMALL = ("digits", "ho-cifar10")
# Of the sweep, for processes side by side.
PARTS = 16
# Groups of 3, 12, 30 and 42 channels, and of 24 without pixels: none a power of two, and as many as a tile takes.
ODD_GROUPS = {
    "96@4x4, 8 groups": ((16, 96, 4, 4), 8),
    "96@4x4, 32 groups": ((16, 96, 4, 4), 32),
    "384@32x32, 32 groups": ((16, 384, 32, 32), 32),
    "960@16x16, 32 groups": ((16, 960, 16, 16), 32),
    "1344@16x16, 32 groups": ((16, 1344, 16, 16), 32),
    "1344@8x8, 32 groups": ((16, 1344, 8, 8), 32),
    "768, 32 groups": ((16, 768), 32),
}


def check(launch):
    kernels = kernel_report.compile_launches(launch, "sm_90")
    for kernel in kernels:
        found = kernel_report.inspect(kernel)
        assert found.spills == 0, kernel.name
        assert found.shared <= SHARED_LIMIT
        assert found.registers * 32 * kernel.metadata.num_warps <= 65536, (
            "not even one program fits on a multiprocessor"
        )
    return len(kernels)


@pytest.mark.parametrize("name", ODD_GROUPS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_norms_of_groups_of_no_power_of_two_do_not_spill(name, backward):
    shape, groups = ODD_GROUPS[name]
    assert check(group_norm_case(shape, "bfloat16", groups=groups, backward=backward)) in (1, 2)


def test_the_report_holds_every_kind_of_layer_of_a_preset():
    names = preset_cases("digits")
    for kind in ("norm ", "norm backward ", "conv ", "attention "):
        for dtype in ("bfloat16", "float32"):
            assert any(name.startswith(f"digits: {kind}") and name.endswith(dtype) for name in names), (kind, dtype)


@functools.cache
def layers():
    """Each layer of all presets once, by what it is.

    Convolutions in float32 are the small presets' alone: PyTorch's are the default, and bench/kernel_report.py has all.
    """
    found = {}
    for preset in PRESETS:
        for name, launch in preset_cases(preset).items():
            _, kind = name.split(": ", 1)
            if preset in SMALL or not (kind.startswith("conv ") and kind.endswith("float32")):
                found.setdefault(kind, launch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_kernel_of_the_presets_compiles_without_spills(part):
    names = sorted(layers())[part::PARTS]
    assert len(names) > 30
    for name in names:
        assert check(layers()[name]) >= 1, name
