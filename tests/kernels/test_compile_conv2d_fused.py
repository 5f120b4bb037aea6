"""The GPU kernel of conv2d_fused compiled ahead of time, with no GPU: no spills, wide accesses, matrix instructions."""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report
from kernel_configs_conv import CASES

# Bytes of shared memory of a program: sm_80's cards have 163 KiB, their smaller kin 99.
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
# The first and the last layer have three channels on one side: rows of 6 bytes.
NARROW = ["conv bfloat16, 3 to 128", "conv bfloat16, 128 to 3"]
ELSEWHERE = ["conv bfloat16, norm, statistics", "conv float32, 128x32x32", "conv bfloat16, 128 to 3"]


def inspect(name, target):
    found = kernel_report.inspect(kernel_report.compile_launch(CASES[name], target))
    assert found.spills == 0
    assert 0 < found.shared <= SHARED_LIMIT[target]
    return found


def check_widths(found):
    """Images and weights by 16 bytes; vectors of bias, time and factors by 4, 8 or 16."""
    loads = found.loads + found.async_loads
    assert loads[16] >= 4
    assert loads[1] + loads[2] == 0, loads
    assert found.stores[16] >= 1
    assert found.stores.total() - found.stores[16] <= 2, found.stores


@pytest.mark.parametrize("name", CASES)
def test_conv_on_hopper(name):
    found = inspect(name, "sm_90")
    # wgmma has 64 rows; an image of 4x4 has 16 pixels.
    assert set(found.matrix) == ({"HMMA"} if "4x4" in name else {"HGMMA"})
    if name not in NARROW:
        check_widths(found)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_conv_on_ampere(name):
    found = inspect(name, "sm_80")
    assert set(found.matrix) == {"HMMA"}
    if name not in NARROW:
        check_widths(found)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_conv_on_amd(name):
    assert inspect(name, "gfx942").matrix["MFMA"] > 0
