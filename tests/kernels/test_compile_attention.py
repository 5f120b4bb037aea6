"""Attention's GPU kernels compiled ahead of time, with no GPU: nothing spills, accesses are wide, dots become wgmma."""

import pytest

pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
import kernel_report
import torch
from kernel_configs_attention import CASES
from triton.runtime.driver import driver

from fastdiff.kernels import attention_tiles

# Bytes of shared memory of a program: sm_80's cards have 163 KiB, their smaller kin 99.
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
# The middle end is the same for all targets: a part stands for the rest.
ON_AMD = [name for name in CASES if name.endswith(("bfloat16, d 64", "bfloat16, d 512", "float32, d 64"))]


def inspect(name, target):
    found = kernel_report.inspect(kernel_report.compile_launch(CASES[name], target))
    assert found.spills == 0
    assert found.shared <= SHARED_LIMIT[target]
    return found


def check_widths(found):
    """Tensors are read and written by 16 bytes; the log-sum-exp and its like, a number per token, by fewer."""
    loads = found.loads + found.async_loads
    assert loads[16] >= 2
    assert loads[1] + loads[2] == 0
    assert loads[4] + loads[8] <= 32, loads
    assert found.stores[16] >= 2
    assert found.stores.total() - found.stores[16] <= 1, found.stores


@pytest.mark.parametrize("name", CASES)
def test_attention_on_hopper(name):
    found = inspect(name, "sm_90")
    if not name.endswith("edm"):
        check_widths(found)
    # wgmma has 64 rows.
    if "float32" in name or "16 tokens" in name or "edm" in name:
        assert found.matrix.total() > 0
    else:
        assert set(found.matrix) == {"HGMMA"}


@pytest.mark.parametrize("name", CASES)
def test_attention_on_ampere(name):
    found = inspect(name, "sm_80")
    if not name.endswith("edm"):
        check_widths(found)
    assert set(found.matrix) == {"HMMA"}


@pytest.mark.parametrize("name", ON_AMD)
def test_attention_on_amd(name):
    assert inspect(name, "gfx942").matrix["MFMA"] > 0


@pytest.fixture
def _default_precision():
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_default_precision")
def test_precision_follows_pytorchs_switches_old_and_new():
    def precision():
        return attention_tiles.product_precision("sm_90", torch.float32)

    assert precision() == "tf32x3"
    for name, expected in (("high", "tf32"), ("highest", "tf32x3"), ("medium", "tf32"), ("highest", "tf32x3")):
        torch.set_float32_matmul_precision(name)
        assert precision() == expected
    for value, expected in (("tf32", "tf32"), ("ieee", "tf32x3")):
        torch.backends.cuda.matmul.fp32_precision = value
        assert precision() == expected
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    assert precision() == "tf32"
    assert attention_tiles.product_precision("sm_90", torch.bfloat16) == "ieee"
    assert attention_tiles.product_precision("hip", torch.float32) == "ieee"


def test_the_gpu_that_is_asked_for_its_kind_is_the_tensors(monkeypatch):
    current = ["another device"]

    class Guard:
        def __init__(self, x):
            self.device = x.device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    asked = []

    class Device(kernel_report.AbsentDevice):
        def get_current_target(self):
            asked.append(current[-1])
            return self.target

    monkeypatch.setattr(driver, "_active", Device(kernel_report.TARGETS["sm_90"]))
    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    assert attention_tiles.gpu_family(torch.empty(1, device="meta")) == "sm_90"
    assert asked == [torch.device("meta")]
