"""Every shipped configuration of every GPU kernel compiled for Ampere and for AMD: nothing spills, it fits on chip.

Hopper, and what accesses and matrix instructions look like, are in the other test_kernels_compile files.
"""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report

# Bytes of shared memory of a program: sm_80's cards have 163 KiB, their smaller kin 99; CDNA has 64.
SHARED_LIMIT = {"sm_80": 99 * 1024, "gfx942": 64 * 1024}


@pytest.mark.slow
@pytest.mark.parametrize("name", kernel_report.SHIPPED)
@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_every_configuration_compiles(target, name):
    found = kernel_report.inspect(kernel_report.compile_launch(kernel_report.SHIPPED[name], target))
    assert found.spills == 0
    assert found.shared <= SHARED_LIMIT[target]
    assert found.loads.total() + found.async_loads.total() > 0
    assert found.stores.total() > 0


def test_the_report_knows_the_local_memory_of_amd():
    """Triton asks for it at the launch: the code itself says 0."""
    name = "step float32 nhwc, history 3, base, pred"
    found = kernel_report.inspect(kernel_report.compile_launch(kernel_report.SHIPPED[name], "gfx942"))
    # The noise is transposed through it: a tile of 1024 float32 numbers.
    assert found.shared >= 2048
